"""Drives a run: opens its folder, then takes the lease of each unfinished step and does the step, until all are sealed.

Running again resumes the run. Running a finished run does nothing. `state.json` in the run folder records how the last
attempt ended, for scripts that decide whether to start the run again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entroloop.data import files, memory, peers
from entroloop.data.errors import Interrupted, UserError, refusal
from entroloop.data.runfolder import Layout, Step
from entroloop.data.seeds import Part
from entroloop.data.store import manifest
from entroloop.data.world import World
from entroloop.launcher.config import Config
from entroloop.launcher.preview.disk import RealFacts, source_of
from entroloop.launcher.run import lease, retention
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.facts import numerics
from entroloop.launcher.run.lease import InUse, Lease, LeaseLost, Moved
from entroloop.launcher.run.log_file import logged
from entroloop.launcher.run.machine import check_machine, check_space, check_space_ahead
from entroloop.launcher.run.phases import BY_NAME, PHASES
from entroloop.launcher.run.ready import check_ready, own_encoders, uses_own_parts
from entroloop.launcher.run.recipes import inputs, is_sealed, next_step, real_folder, steps
from entroloop.launcher.run.resume import check_saved, check_sealed, claim, open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """Settings of one attempt at a run. They do not change the sealed bytes.

    state    a second file, beside the run's state.json, that records how the attempt ended
    wait     seconds that a single phase waits for the seals it needs, as directory caches of shared file systems lag
    scratch  folder on this machine's own disk to which training shards are copied first
    overlap  encode every shard as soon as it is sampled
    """

    state: Path | None = None
    wait: float = 0
    scratch: Path | None = None
    overlap: bool = False


def run(
    config: Config, world: World, should_stop: Callable[[], bool], *, until: Step | None = None,
    attempt: Attempt = Attempt(),
) -> None:  # fmt: skip
    """Runs every step that is not sealed yet, up to and including `until` where it is given.

    Raises UserError, Interrupted or any exception of a phase. `state.json` then records which.
    """
    order = list(steps(config.generations))
    sealed = is_sealed(Layout(config.run_folder))
    real = world.agree(lambda: check_fits(config, world, {step.phase for step in order if not sealed(step)}))
    torch.set_num_threads(config.threads)
    world.on_main(lambda: check_space_ahead(config, real, [*itertools.filterfalse(sealed, order)]))
    layout = world.on_main(lambda: _opened(config))
    context = Context(config, layout, world, should_stop, scratch=attempt.scratch, overlap=attempt.overlap)
    ahead = not all(map(sealed, order))  # a finished run is left alone
    with _state(layout, world, config.generations, attempt.state), logged(layout.log, main=world.is_main and ahead):
        world.on_main(lambda: retention.apply(config, layout))
        if world.is_main and not ahead:
            log.info("%s: already finished", layout.run)
        # Rank 0 decides, because directory caches of shared file systems differ between nodes for a while.
        while (step := world.on_main(lambda: next_step(sealed, config.generations))) is not None:
            if until is not None and order.index(step) > order.index(until):
                break
            if world.any(should_stop()):
                raise Interrupted(f"stopped before {step}")
            world.on_main(lambda step=step: check_space(config, real, step))  # type: ignore[misc]
            run_step(context, step)
            world.on_main(lambda: retention.apply(config, layout))


def run_single(
    config: Config, world: World, should_stop: Callable[[], bool], step: Step, part: Part | None,
    attempt: Attempt = Attempt(),
) -> None:  # fmt: skip
    """Runs one step, or a part of it. Raises UserError when the run has no such step."""
    if part is not None and not BY_NAME[step.phase].in_parts:
        names = ", ".join(phase.name for phase in PHASES if phase.in_parts)
        raise UserError(f"--part {part}: {step.phase} is not done in parts: give one of {names}")
    if step not in set(steps(config.generations)):
        raise UserError(f"--generation {step.generation}: the run has generations 0 … {config.generations - 1}")
    done = manifest.is_sealed(Layout(config.run_folder).of(step))
    real = world.agree(lambda: check_fits(config, world, set() if done else {step.phase}))
    torch.set_num_threads(config.threads)
    world.on_main(lambda: check_space(config, real, step) if part is None else None)
    layout = world.on_main(lambda: _opened(config, sweeps=part is None))
    with _state(layout, world, config.generations, attempt.state), logged(layout.log, main=world.is_main):
        if world.on_main(lambda: manifest.is_sealed(layout.of(step))):
            _say(world, step, "already sealed", 0.0)
            return
        world.agree(lambda: _await_seals(config, layout, step, attempt.wait))
        run_step(Context(config, layout, world, should_stop, scratch=attempt.scratch), step, part)
        if part is None:
            world.on_main(lambda: retention.apply(config, layout))


def _opened(config: Config, *, sweeps: bool = True) -> Layout:
    """`open_run`, then removes what killed attempts left behind. The many tasks of an array leave this to others."""
    layout = open_run(config)
    if sweeps:
        lease.sweep(layout.run)
    return layout


def check_fits(config: Config, world: World, names: Collection[str]) -> RealFacts | None:
    """Raises UserError, before anything is begun, where these processes cannot do one of these phases.

    Returns a description of the real data if this rank has looked at them.
    """
    ahead = [BY_NAME[name] for name in names]
    imported = manifest.is_sealed(real_folder(config, Layout(config.run_folder)))
    tried = own_encoders(config, ahead) or uses_own_parts(config, ahead)
    # Listing a source can take long, so where nothing is tried on it, one rank does it.
    look = ahead and (imported or tried or ("prepare" in names and world.is_main))
    real = source_of(config) if look else None
    check_ready(config, ahead, real, world.device)
    for phase in ahead:
        phase.fits(config, world)
    check_machine(config, ahead, real.shape if real else None, world.device)
    return real


def _await_seals(config: Config, layout: Layout, step: Step, patience: float) -> None:
    """Waits until this machine sees the seals of all that the step reads. Raises UserError after `patience` seconds."""
    start = time.monotonic()
    for needed in inputs(config, step):
        while not manifest.is_sealed(layout.of(needed)):
            if time.monotonic() - start >= patience:
                waited = f" after {patience:.0f} s" if patience else ""
                raise UserError(f"{layout.of(needed)}: not sealed{waited}: {step} needs it, run {needed} first")
            time.sleep(min(1.0, patience))


def run_step(context: Context, step: Step, part: Part | None = None) -> None:
    """Does one step under its lease unless another process has sealed it. Writes its lines of stats.jsonl and the log.

    Raises InUse when another process is at work on the step, LeaseLost when one took over from this process, Moved
    when the folder of the run is gone.
    """
    start = time.monotonic()
    world, layout = context.world, context.layout
    held = Lease(layout.lease(step, str(part or Part())), str(step))
    with contextlib.ExitStack() as stack:

        def begin() -> str | None:
            """Takes the lease and returns its token; None when there is nothing left to do."""
            if not _is_sealed_now(layout.of(step)):
                claim(layout, step, context.recipes[step])
                stack.enter_context(held)
                stack.enter_context(peers.before_end(lambda line: held.release()))
                stack.enter_context(files.fenced(held.check))
            if _is_sealed_now(layout.of(step)):
                check_sealed(context.config, layout, step)
                return None
            check_saved(context.config, layout, step)  # another process may have saved its own configuration
            return held.token

        token = world.on_main(begin)
        if token is None:
            _say(world, step, "sealed by another process", time.monotonic() - start)
            return
        stack.enter_context(_attached(context, held))
        try:
            said = perform(context, step, part)
        except Exception as error:
            if _taken_over(context, step, held, token):
                raise held.loss() from error
            if isinstance(error, Interrupted):
                _note(context, step, part, time.monotonic() - start, interrupted=True)  # other ranks may be elsewhere
            raise
    seconds = time.monotonic() - start
    world.on_main(lambda: _note(context, step, part, seconds, sealed=part is None))
    _say(world, step, said, seconds)


def perform(context: Context, step: Step, part: Part | None = None) -> str:
    """Does one step on every rank and returns the text for the log. Raises UserError when its inputs are not sealed."""
    context.facts.clear()
    said = BY_NAME[step.phase].work(context, step, part)
    context.world.barrier()
    memory.release(context.world.device)
    return said


def _is_sealed_now(folder: Path) -> bool:
    """`manifest.is_sealed` from a fresh listing, as a shared file system may cache that a file is absent."""
    return folder.is_dir() and manifest.MANIFEST in os.listdir(folder)


def _taken_over(context: Context, step: Step, held: Lease, token: str) -> bool:
    """Whether another process has taken rank 0's lease. The other ranks call this once rank 0 has left them."""
    if context.world.is_main:
        return not held.held()
    now = lease.read(held.path)
    return is_sealed(context.layout)(step) if now is None else now.get("token") != token


@contextlib.contextmanager
def _attached(context: Context, held: Lease) -> Iterator[None]:
    """While open, work reports its progress to the lease and stops when the lease is lost."""
    told_to_stop = context.should_stop
    context.should_stop = lambda: told_to_stop() or held.lost
    context.on_progress = lambda progress: setattr(held, "progress", progress)
    try:
        yield
    finally:
        context.should_stop = told_to_stop


def _note(context: Context, step: Step, part: Part | None, seconds: float, **facts: Any) -> None:
    if context.world.is_main:
        line = {
            "phase": step.phase,
            "part": str(part or Part()),
            "seconds": round(seconds, 3),
            **context.facts,
            **facts,
        }
        files.add_line(context.layout.stats(step.generation), {**line, "numerics": numerics(context.world)})


def _say(world: World, step: Step, said: str, seconds: float) -> None:
    if world.is_main:
        where = "real data" if step.phase == "prepare" else f"generation {step.generation}"
        log.info("%-13s  %-8s  %8.1f s  %s", where, step.phase, seconds, said)


@contextlib.contextmanager
def _state(layout: Layout, world: World, generations: int, second: Path | None = None) -> Iterator[None]:
    """Writes state.json at the end: finished, interrupted or failed, with the exit status and the reason.

    Once every step of the run is sealed, the file also holds the number of generations. `entroloop verify` reads it.
    A state that cannot be written changes nothing of how the attempt ends: the run may be on a read-only disk.
    """

    def write(status: str, code: int, reason: str = "", facts: dict[str, int] | None = None) -> None:
        if world.is_main:
            value = {"status": status, "exit": code, "reason": reason, **(facts or {})}
            for path in filter(None, (layout.state, second)):
                try:
                    files.put(path, files.json_bytes(value))
                except UserError as error:
                    log.warning("%s: this attempt is not recorded", error)

    if second is not None:
        world.on_main(lambda: files.check_place(second))
    try:
        with peers.before_end(lambda line: write("failed", 1, line)):
            yield
    except (InUse, LeaseLost, Moved):  # the other process reports the state, or there is no place for it
        raise
    except Interrupted as stop:
        write("interrupted", 75, str(stop))
        raise
    except UserError as error:
        write("failed", 2, str(error))
        raise
    except Exception as error:
        refused = refusal(error) if isinstance(error, OSError) else None
        if refused is None:
            write("failed", 1, f"{type(error).__name__}: {error}")
        else:
            write("failed", 2, str(refused))
        raise
    complete = next_step(is_sealed(layout), generations) is None
    write("finished", 0, facts={"generations": generations} if complete else {})
