"""The command line: `entroloop …`, or `python -m entroloop.launcher …` under torchrun and accelerate.

Exit status: 0 done, 1 failed, 2 the input is wrong (one line, no traceback), 75 stopped by a signal and resumable.
Commands import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from entroloop.data.errors import Failed, Interrupted, UserError

RESUMABLE = 75

# typer brings a click of its own, or uses the installed one, by version: this is the base of its errors in either.
CommandLineError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="entroloop",
    help="Train diffusion models on their own samples, generation after generation, without model collapse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="YAML configuration.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value …", show_default=False)]


@app.command("run")
def run_command(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Print phases, sizes and network calls; do nothing.")] = False,
    generation: Annotated[int | None, typer.Option(help="Run one phase of this generation only.")] = None,
    phase: Annotated[str | None, typer.Option(help="prepare, select, train, sample, encode or evaluate.")] = None,
    part: Annotated[str | None, typer.Option(help="i::n, the shards i, i + n, … of sample or encode.")] = None,
    state: Annotated[Path | None, typer.Option(help="Write here too how the attempt ended, as state.json.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the seals that a single phase needs.")] = 0,
    scratch: Annotated[Path | None, typer.Option(help="Copy training shards to this folder first.")] = None,
    overlap: Annotated[bool, typer.Option(help="Encode every shard as soon as it is sampled.")] = False,
) -> None:
    """Run the whole loop of one run, resumed where it stopped."""
    from entroloop.launcher import config as configuration

    settings = configuration.load(config, overrides or [])
    if dry_run:
        from entroloop.launcher.preview.dry_run import describe

        print(describe(settings))
        return
    from entroloop.data.seeds import parse_part
    from entroloop.launcher.process import StopFlag, world_from_environment
    from entroloop.launcher.run import runner as drive

    single = _step(generation, phase)
    if part is not None and single is None:
        raise UserError("--part: goes with --generation and --phase sample or encode")
    stop, attempt = StopFlag(), drive.Attempt(state, wait, scratch, overlap)
    world = world_from_environment(should_stop=lambda: bool(stop))
    if not world.is_main:
        logging.getLogger("entroloop").setLevel(logging.WARNING)
    if single is None:
        drive.run(settings, world, lambda: bool(stop), attempt=attempt)
    else:
        share = parse_part(part) if part else None
        drive.run_single(settings, world, lambda: bool(stop), single, share, attempt)


def _step(generation: int | None, phase: str | None) -> Any:
    """The step that --generation and --phase name; None without them. Raises UserError when they do not fit."""
    from entroloop.launcher.run.steps import PHASES, PREPARE, Step

    if phase is None and generation is None:
        return None
    if phase == "prepare":
        return PREPARE
    if phase not in PHASES:
        raise UserError(f"--phase {phase}: give one of prepare, {', '.join(PHASES)}")
    if generation is None:
        raise UserError(f"--phase {phase}: say which generation with --generation")
    return Step(generation, phase)


@app.command("sweep")
def sweep_command(
    config: ConfigFile,
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="As one job array on a SLURM cluster.")] = False,
) -> None:
    """Run a grid of runs side by side (strategy x paradigm x seed), then write one report."""
    if slurm:
        from entroloop.launcher.commands import slurm as cluster_commands

        cluster_commands.submit_sweep(config, overrides or [])
        return
    from entroloop.launcher import sweep
    from entroloop.launcher.process import StopFlag, check_alone

    check_alone("sweep", "it starts its runs itself: start it once, or use entroloop sweep --slurm")
    stop = StopFlag()
    sweep.run(config, overrides or [], lambda: bool(stop))


@app.command("status")
def status_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run or a sweep.", show_default=False)],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which phase of which generation is at what."""
    import json

    from entroloop.launcher.commands import status

    found = status.inspect(run)
    print(json.dumps(found) if json_ else status.table(found))


def _register() -> None:
    """Adds the commands that live in modules of their own."""
    from entroloop.launcher.commands import config as config_keys
    from entroloop.launcher.commands import latents
    from entroloop.launcher.commands import report as reporting
    from entroloop.launcher.commands import sample as sampling
    from entroloop.launcher.commands import select as vectors
    from entroloop.launcher.commands import sets as datasets
    from entroloop.launcher.commands import slurm as cluster_commands

    app.command("config")(config_keys.config_command)
    app.command("import")(datasets.import_command)
    app.command("verify")(datasets.verify_command)
    app.command("seal")(datasets.seal_command)
    app.command("latents")(latents.latents_command)
    app.command("select")(vectors.select_command)
    app.command("entropy")(vectors.entropy_command)
    app.command("measure")(reporting.measure_command)
    app.command("report")(reporting.report_command)
    app.command("sample")(sampling.sample_command)
    app.add_typer(cluster_commands.app)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout)
    logging.getLogger("entroloop").setLevel(logging.INFO)
    _register()
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        status = app(args=arguments, standalone_mode=False)
    except UserError as error:
        return _refuse(" ".join(str(error).split()))
    except typer.Abort as stop:  # what typer makes of a KeyboardInterrupt, and of an EOFError, which nobody typed here
        if isinstance(stop.__cause__, EOFError):
            raise stop.__cause__ from None
        return _stopped("stopped")
    except (Interrupted, KeyboardInterrupt) as stop:
        return _stopped(str(stop) or "stopped")
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Failed as error:
        print(f"entroloop: {error}", file=sys.stderr)
        return 1
    except CommandLineError as error:  # type: ignore[misc]  # found at run time
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
            return 0
        return _refuse(" ".join(error.format_message().split()))
    return int(status or 0)


def _stopped(why: str) -> int:
    print(f"entroloop: {why}; run the same command again to go on", file=sys.stderr)
    return RESUMABLE


def _refuse(line: str) -> int:
    print(f"entroloop: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
