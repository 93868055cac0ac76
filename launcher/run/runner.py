"""Drives a run: opens its folder, takes the lease of the next unfinished step, does it, and so on until all are sealed.

Running again resumes; running a finished run does nothing. `state.json` in the run folder says how the last attempt
ended, for scripts that decide whether to start it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from entroloop.data import files
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.seeds import Part
from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL
from entroloop.data.world import World
from entroloop.launcher.config import MAY_CHANGE, Config, differences, dump, explain
from entroloop.launcher.run import lease, retention
from entroloop.launcher.run.facts import numerics
from entroloop.launcher.run.lease import InUse, Lease, LeaseLost
from entroloop.launcher.run.ready import check_ready
from entroloop.launcher.run.steps import PREPARE, Layout, Phase, Step, inputs, is_sealed, next_phase, read_config, steps
from entroloop.launcher.run.work import Work
from entroloop.trainer.engines.launch import check_launch
from entroloop.trainer.network import check_precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """How a run is carried out this time; nothing of it changes what is sealed.

    state    a second file, beside the run's state.json, that says how the attempt ended
    wait     seconds that a single phase waits for the seals it needs: directory caches of shared file systems lag
    scratch  folder on this machine's own disk to which training shards are copied first
    overlap  encode every shard as soon as it is sampled
    """

    state: Path | None = None
    wait: float = 0
    scratch: Path | None = None
    overlap: bool = False


def open_run(config: Config) -> Layout:
    """The run's folder, made with its configuration or found with the same one.

    `threads` and a larger number of generations may differ; anything else raises UserError that shows the difference.
    """
    layout = Layout(config.run_folder)
    mine = config.settled()
    if not layout.config.exists():
        if layout.run.is_file():
            raise UserError(f"{layout.run}: is a file, not a run folder: choose another name= or folder=")
        if layout.run.is_dir() and any(not path.name.startswith(".") for path in layout.run.iterdir()):
            raise UserError(
                f"{layout.run}: holds other files and is not a run (no {layout.config.name}): choose another name= or "
                "folder="
            )
        files.create(layout.config, lambda file: file.write(dump(config)))
    saved = _with_defaults(layout)
    if saved != mine and not _begun(layout):
        with Lease(layout.lease(PREPARE), "saving the configuration"):  # whoever prepares compares it under this lease
            if not is_sealed(layout)(PREPARE):
                files.replace(layout.config, lambda file: file.write(dump(config)))
                return layout
        saved = _with_defaults(layout)
    found = [d for d in differences(saved, mine) if not re.match(rf"({'|'.join(MAY_CHANGE)})[ .]", d)]
    if mine["generations"] > saved["generations"]:
        found = [d for d in found if not d.startswith("generations ")]
    if found:
        raise UserError(
            f"{layout.run}: this run was started with another configuration: {'; '.join(found)}: "
            "give the same values, or another name="
        )
    if saved != mine:
        files.replace(layout.config, lambda file: file.write(dump(config)))
    return layout


def _with_defaults(layout: Layout) -> dict[str, Any]:
    """The saved configuration; keys that came into being after the run was started have their defaults."""
    try:
        return Config.model_validate(read_config(layout)).settled()
    except ValidationError as error:
        raise UserError(f"{layout.config}: not a configuration of this version: {explain(error)}") from error


def _begun(layout: Layout) -> bool:
    """Whether anything is sealed, or being made, that depends on the configuration."""
    leases = layout.generation(REAL).glob(f"{layout.lease(PREPARE, '').name}*")
    return is_sealed(layout)(PREPARE) or any(leases)


def run(
    config: Config, world: World, should_stop: Callable[[], bool], *, until: Step | None = None,
    attempt: Attempt = Attempt(),
) -> None:  # fmt: skip
    """Runs every step that is not sealed yet, up to and including `until` where it is given.

    Raises UserError, Interrupted or what a phase raised; `state.json` then tells which.
    """
    torch.set_num_threads(config.threads)
    order = list(steps(config.generations))
    sealed = is_sealed(Layout(config.run_folder))
    check_fits(config, world, {step.phase for step in order if not sealed(step)})
    layout = world.on_main(lambda: open_run(config))
    work = Work(config, layout, world, should_stop, scratch=attempt.scratch, overlap=attempt.overlap)
    with _state(layout, world, attempt.state):
        if world.is_main:
            retention.apply(config, layout)
        while (step := _agreed_next(layout, config, world)) is not None:
            if until is not None and order.index(step) > order.index(until):
                break
            if _any(world, should_stop()):
                raise Interrupted(f"stopped before {step}")
            run_step(work, step)
            if world.is_main:
                retention.apply(config, layout)


def run_single(
    config: Config, world: World, should_stop: Callable[[], bool], step: Step, part: Part | None,
    attempt: Attempt = Attempt(),
) -> None:  # fmt: skip
    """Runs one step, or a part of it. Raises UserError when the run has no such step."""
    torch.set_num_threads(config.threads)
    if step not in set(steps(config.generations)):
        raise UserError(f"--generation {step.generation}: the run has generations 0 … {config.generations - 1}")
    check_fits(config, world, {step.phase})
    layout = world.on_main(lambda: open_run(config))
    with _state(layout, world, attempt.state):
        if world.on_main(lambda: manifest.is_sealed(layout.of(step))):  # seen at different times by different ranks
            _say(world, step, "already sealed", 0.0)
            return
        _await_seals(config, layout, step, attempt.wait)
        run_step(Work(config, layout, world, should_stop, scratch=attempt.scratch), step, part)
        if world.is_main and part is None:
            retention.apply(config, layout)


def check_fits(config: Config, world: World, phases: Collection[Phase]) -> None:
    """Raises UserError, before anything is begun, where these processes could not do one of these phases."""
    check_ready(config, phases, world.device)
    if "train" in phases:
        check_launch(config.train, world)
    if "sample" in phases:
        check_precision("sample", config.sample.precision, world.device)


def _await_seals(config: Config, layout: Layout, step: Step, patience: float) -> None:
    """Returns when everything that the step reads is sealed as this machine sees it. Raises UserError if that fails."""
    start = time.monotonic()
    for needed in inputs(config, step):
        while not manifest.is_sealed(layout.of(needed)):
            if time.monotonic() - start >= patience:
                waited = f" after {patience:.0f} s" if patience else ""
                raise UserError(f"{layout.of(needed)}: not sealed{waited}: {step} needs it, run {needed} first")
            time.sleep(min(1.0, patience))


def run_step(work: Work, step: Step, part: Part | None = None) -> None:
    """Does one step under its lease, unless another process has sealed it; writes its line of stats.jsonl and the log.

    Raises InUse when another process is at work on the step, LeaseLost when one took over from this process.
    """
    start = time.monotonic()
    world, layout = work.world, work.layout
    held = Lease(layout.lease(step, str(part or Part())), str(step))
    with contextlib.ExitStack() as stack:

        def begin() -> str | None:
            """Takes the lease and returns its token; None when there is nothing left to do."""
            stack.enter_context(held)
            stack.enter_context(files.fenced(held.check))
            if step == PREPARE:
                open_run(work.config)  # another first start may have saved its own configuration
            if _is_sealed_now(layout.of(step)):
                return None
            if part is None:  # other parts may be at work in the same folder
                files.sweep_temporaries(layout.of(step))
                if step.phase == "train":
                    files.sweep_temporaries(layout.checkpoints(step.generation))
            return held.token

        token = world.on_main(begin)
        if token is None:
            _say(world, step, "sealed by another process", time.monotonic() - start)
            return
        stack.enter_context(_attached(work, held))
        try:
            said = work.run(step, part)
        except Exception as error:
            if _taken_over(work, step, held, token):
                raise LeaseLost(f"{layout.run}: another process took over {step} while this one was frozen") from error
            if isinstance(error, Interrupted):
                _note(work, step, part, time.monotonic() - start, interrupted=True)
            raise
    seconds = time.monotonic() - start
    _note(work, step, part, seconds)
    _say(world, step, said, seconds)


def _is_sealed_now(folder: Path) -> bool:
    """`manifest.is_sealed` from a fresh listing: caches of a shared file system may remember an absent file."""
    return folder.is_dir() and manifest.MANIFEST in os.listdir(folder)


def _taken_over(work: Work, step: Step, held: Lease, token: str) -> bool:
    """Whether another process has taken rank 0's lease. The other ranks learn it when rank 0 has left them."""
    if work.world.is_main:
        return not held.held()
    now = lease.read(held.path)
    return is_sealed(work.layout)(step) if now is None else now.get("token") != token


@contextlib.contextmanager
def _attached(work: Work, held: Lease) -> Iterator[None]:
    """The work reports its progress to the lease and stops when the lease is lost."""
    told_to_stop = work.should_stop
    work.should_stop = lambda: told_to_stop() or held.lost
    work.on_progress = lambda progress: setattr(held, "progress", progress)
    try:
        yield
    finally:
        work.should_stop = told_to_stop


def _note(work: Work, step: Step, part: Part | None, seconds: float, **facts: Any) -> None:
    if work.world.is_main:
        line = {"phase": step.phase, "part": str(part or Part()), "seconds": round(seconds, 3), **work.facts, **facts}
        files.add_line(work.layout.stats(step.generation), {**line, "numerics": numerics(work.world)})


def _say(world: World, step: Step, said: str, seconds: float) -> None:
    if world.is_main:
        where = "real data" if step.phase == "prepare" else f"generation {step.generation}"
        log.info("%-13s  %-8s  %8.1f s  %s", where, step.phase, seconds, said)


def _agreed_next(layout: Layout, config: Config, world: World) -> Step | None:
    """The next step as rank 0 sees it: directory caches of shared file systems differ between nodes for a while."""
    step = next_phase(is_sealed(layout), config.generations) if world.is_main else None
    found: Step | None = world.gather_objects(step)[0]
    return found


def _any(world: World, flag: bool) -> bool:
    return bool(world.all_reduce(torch.tensor([float(flag)]), "max").item())


@contextlib.contextmanager
def _state(layout: Layout, world: World, second: Path | None = None) -> Iterator[None]:
    """Keeps state.json: running, then finished, interrupted or failed, with the exit status and the reason."""

    def write(status: str, code: int, reason: str = "") -> None:
        if world.is_main:
            value = {"status": status, "exit": code, "reason": reason}
            for path in filter(None, (layout.run / "state.json", second)):
                files.put(path, files.json_bytes(value))

    try:
        yield
    except (InUse, LeaseLost):  # the state is for the other process to tell
        raise
    except Interrupted as stop:
        write("interrupted", 75, str(stop))
        raise
    except UserError as error:
        write("failed", 2, str(error))
        raise
    except Exception as error:
        write("failed", 1, f"{type(error).__name__}: {error}")
        raise
    write("finished", 0)
