"""`entroloop run`: the whole loop of one run, or one phase of the loop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entroloop.data.errors import UserError
from entroloop.launcher.commands.common import PHASES, ConfigFile, Overrides, Quiet, Verbose, one_of, part_option

if TYPE_CHECKING:
    from entroloop.data.runfolder import Step


def run_command(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Print phases, sizes and network calls without running.")] = False,
    generation: Annotated[int | None, typer.Option(help="With --phase: the generation of the phase.")] = None,
    phase: Annotated[str | None, typer.Option(help="Run only this phase.", **one_of(PHASES))] = None,
    part: Annotated[
        Any, part_option(help="i::n does only the shards i, i + n, … of a phase that allows parts.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Also write the state.json of this attempt to this file.")] = None,
    wait: Annotated[float, typer.Option(help="With --phase: seconds to wait for the seals that the phase needs.")] = 0,
    scratch: Annotated[Path | None, typer.Option(help="Copy training shards to this folder first.")] = None,
    overlap: Annotated[bool, typer.Option(help="Encode every shard as soon as it is sampled.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the whole loop of one run, or resume it where it stopped."""
    from entroloop.launcher.config import load

    settings = load(config, overrides or [])
    if dry_run:
        from entroloop.launcher.preview.dry_run import dry_run as forecast

        forecast(settings)
        return
    from entroloop.launcher.process import StopFlag, world_from_environment
    from entroloop.launcher.run import runner

    single = _step(generation, phase)
    if part is not None and single is None:
        raise UserError("--part: goes with --phase, and --generation where the phase has one")
    stop, attempt = StopFlag(), runner.Attempt(state, wait, scratch, overlap)
    world = world_from_environment(should_stop=stop)
    if not world.is_main:
        logging.getLogger("entroloop").setLevel(logging.WARNING)
    if single is None:
        runner.run(settings, world, stop, attempt=attempt)
    else:
        runner.run_single(settings, world, stop, single, part, attempt)


def _step(generation: int | None, phase: str | None) -> Step | None:
    """The step that --generation and --phase name; None without them. Raises UserError when they do not fit."""
    from entroloop.data.runfolder import Step
    from entroloop.data.store.shards import REAL
    from entroloop.launcher.run.phases import BY_NAME

    if phase is None and generation is None:
        return None
    if phase not in BY_NAME:
        raise UserError(f"--phase {phase}: give one of {', '.join(BY_NAME)}")
    if BY_NAME[phase].once:
        return Step(REAL, phase)
    if generation is None:
        raise UserError(f"--phase {phase}: say which generation with --generation")
    return Step(generation, phase)
