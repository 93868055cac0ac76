"""Runs a grid of runs side by side, each in a process on a GPU or cores of its own, and writes one report at the end.

Runs may agree up to some step: with one seed, for example, generation 0 is the same for every strategy. The shared part
is done once. The first of these runs is the leader. The others start when the leader has finished the shared part, with
hard links to its sealed folders. Comparisons are thus paired, and cheaper.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entroloop.data import files
from entroloop.data.child import end_with
from entroloop.data.errors import Failed, Interrupted, UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.launcher.config import Config, compose, dump, read_yaml
from entroloop.launcher.keep_config import KeepConfig
from entroloop.launcher.overrides import check_overrides
from entroloop.launcher.run import fork, lease, retention
from entroloop.launcher.run.recipes import is_sealed, next_step, recipes, steps
from entroloop.launcher.run.resume import open_run

log = logging.getLogger(__name__)
POLL = 0.2  # seconds


@dataclass
class SweepRun:
    """One run of the grid.

    leader  the arm that does the steps `shared` for this arm; None where this arm does all its steps itself
    card    the GPU of its process, as CUDA_VISIBLE_DEVICES names it; empty on a machine without GPUs
    """

    config: Config
    leader: SweepRun | None = None
    shared: tuple[Step, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    card: str = ""
    status: int | None = None

    @property
    def layout(self) -> Layout:
        return Layout(self.config.run_folder)

    @property
    def sealed_steps(self) -> int:
        return sum(map(is_sealed(self.layout), steps(self.config.generations)))


def arms_of(path: Path, overrides: Sequence[str]) -> tuple[Config, list[SweepRun]]:
    """The sweep's own configuration and its arms, leaders first. Raises UserError when the grid is empty or wrong."""
    check_overrides(overrides)
    raw = read_yaml(path)
    base = compose(raw, overrides, str(path))
    if Layout(base.run_folder).config.exists():
        raise UserError(f"{base.run_folder}: is a single run, not a sweep: choose another name=")
    grid = base.sweep.grid
    if not grid or not all(grid.values()):
        raise UserError(f"{path}: sweep.grid: give at least one key with a list of values, e.g. seed: [0, 1]")
    arms = []
    for values in itertools.product(*grid.values()):
        chosen: dict[str, Any] = {}
        for key, value in zip(grid, values, strict=True):
            chosen |= value if isinstance(value, Mapping) else {key: value}
        name = "-".join(_label(key, value) for key, value in chosen.items()) or "base"
        own = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
        place = [f"folder={json.dumps(str(Path(base.folder) / base.name))}", f"name={json.dumps(name)}"]
        config = compose(raw, [*overrides, *own, *place], str(path))
        arms.append(SweepRun(fork.forked(config, *fork.parse(base.sweep.fork)) if base.sweep.fork else config))
    if len({arm.config.name for arm in arms}) != len(arms):
        raise UserError(f"{path}: sweep.grid: two runs of the grid would have the same name; values must differ")
    lead(arms)
    return base, arms


def _label(key: str, value: Any) -> str:
    text = str(value).replace("/", "_")
    return text if key in ("selection.strategy", "loop.paradigm") else f"{key.rpartition('.')[2]}{text}"


def lead(arms: Sequence[SweepRun]) -> None:
    """Gives every arm its leader: the earlier arm with which it shares the longest beginning."""
    found = [recipes(arm.config) for arm in arms]
    for i, arm in enumerate(arms):
        for j in (j for j in range(i) if arms[j].config.threads == arm.config.threads):
            shared = list(itertools.takewhile(lambda s, i=i, j=j: found[j].get(s) == found[i][s], found[i]))  # type: ignore[misc]
            if len(shared) > len(arm.shared):
                arm.leader, arm.shared = arms[j], tuple(shared)


def furthest_shared(arm: SweepRun, arms: Sequence[SweepRun]) -> Step | None:
    """The last step of an arm that other arms link to; None where the arm leads no other."""
    order = list(steps(arm.config.generations))
    return max((other.shared[-1] for other in arms if other.leader is arm), key=order.index, default=None)


def link_shared(arm: SweepRun) -> bool:
    """Links the shared steps that the leader has sealed into this arm's run; True when all of them are there."""
    if arm.leader is None:
        return True
    open_run(arm.config)
    for step in arm.shared:
        if manifest.is_sealed(arm.layout.of(step)):
            continue
        source = arm.leader.layout
        if not manifest.is_sealed(source.of(step)):
            return False
        if manifest.removed(source.of(step)):
            continue  # a finished leader has removed its files: this arm makes them again, with the same bytes
        fork.link(source, arm.layout, step)
    return True


def cards() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # takes seconds to import

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]


def run(path: Path, overrides: Sequence[str], should_stop: Callable[[], bool]) -> None:
    """Runs all arms, writes the report to `<folder>/<name>/report.html` and logs the main numbers of every arm.

    Raises Interrupted when told to stop, after the arms have saved their work. Raises Failed, naming the logs, when
    arms failed.
    """
    base, arms = arms_of(path, overrides)
    lease.sweep(base.run_folder)
    gpus = cards()
    jobs = base.sweep.jobs or len(gpus) or max(1, len(os.sched_getaffinity(0)) // base.threads)
    total = sum(len(list(steps(arm.config.generations))) for arm in arms)
    log.info("sweep %s: %d runs, %d side by side", base.run_folder, len(arms), jobs)
    waiting, start = list(arms), time.monotonic()
    running: list[SweepRun] = []
    try:
        while waiting or running:
            if should_stop():
                raise Interrupted(f"the sweep stopped with {len(waiting) + len(running)} runs unfinished")
            for arm in [a for a in waiting if len(running) < jobs]:
                if gpus:
                    taken = [other.card for other in running]
                    arm.card = min(gpus, key=taken.count)
                if len(running) < jobs and _start(arm, arms):
                    waiting.remove(arm)
                    running += [arm] if arm.process else []
            for arm in [a for a in running if a.process and a.process.poll() is not None]:
                running.remove(arm)
                _finished(arm, start)
            failed = [arm for arm in arms if arm.status]
            waiting = [arm for arm in waiting if not any(arm.leader is f for f in failed)]
            if failed and not running and not waiting:
                break
            _show(arms, total, start)
            time.sleep(POLL)
    finally:
        for arm in running:
            _stop(arm)
    _conclude(base, arms)


def while_shared(arm: SweepRun, arms: Sequence[SweepRun]) -> Config:
    """The arm's configuration, changed to remove nothing while other arms still link to its sealed folders."""
    if all(other.leader is not arm for other in arms):
        return arm.config
    return arm.config.model_copy(update={"keep": KeepConfig(checkpoints=arm.config.keep.checkpoints)})


def _start(arm: SweepRun, arms: Sequence[SweepRun]) -> bool:
    """Starts an unfinished arm if its shared steps are ready. Returns whether the shared steps are ready."""
    if not link_shared(arm):
        return False
    if next_step(is_sealed(open_run(arm.config)), arm.config.generations) is None:
        arm.status = 0
        return True
    saved = arm.layout.run / "sweep-arm.yaml"
    files.put(saved, dump(while_shared(arm, arms)))
    with (arm.layout.log).open("ab") as output:
        arm.process = subprocess.Popen(
            [sys.executable, "-m", "entroloop.launcher", "run", str(saved)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(arm.config.threads)}
            | ({"CUDA_VISIBLE_DEVICES": arm.card} if arm.card else {}),
            start_new_session=True,  # Ctrl-C reaches only the sweep, which then stops its runs in order
            preexec_fn=functools.partial(end_with, os.getpid()),  # else a later sweep finds the runs still at work
        )
    return True


def _finished(arm: SweepRun, start: float) -> None:
    assert arm.process is not None
    arm.status = arm.process.returncode
    said = "done" if arm.status == 0 else f"failed with status {arm.status}, see {arm.layout.log}"
    log.info("%8.1f s  %-40s  %s", time.monotonic() - start, arm.config.name, said)


def _stop(arm: SweepRun) -> None:
    assert arm.process is not None
    if arm.process.poll() is None:
        arm.process.send_signal(signal.SIGTERM)
        try:
            arm.process.wait(120)
        except subprocess.TimeoutExpired:
            arm.process.kill()


_shown = 0.0


def _show(arms: Sequence[SweepRun], total: int, start: float) -> None:
    """Shows on a terminal one line that is overwritten: the steps done and an estimate of the time left."""
    global _shown
    if not sys.stderr.isatty() or time.monotonic() - _shown < 1:
        return
    _shown = time.monotonic()
    done = sum(arm.sealed_steps for arm in arms)
    seconds = time.monotonic() - start
    left = seconds / done * (total - done) if done else 0
    print(f"\r{done}/{total} phases, {seconds:.0f} s, about {left:.0f} s left   ", end="", file=sys.stderr)


def _conclude(base: Config, arms: Sequence[SweepRun]) -> None:
    failed = [arm for arm in arms if arm.status != 0]
    if failed:
        logs = ", ".join(str(arm.layout.log) for arm in failed)
        raise Failed(f"{len(failed)} of {len(arms)} runs did not finish; their logs: {logs}")
    for arm in arms:
        retention.apply(arm.config, arm.layout)
    from entroloop.eval.report import page, tables  # imported here: jobs of a sweep and their scripts need no plots

    out = base.run_folder / "report.html"
    numbers = tables.summary(page.write([arm.layout.run for arm in arms], out))
    log.info("%sreport: %s", f"{numbers}\n" if numbers else "", out)
