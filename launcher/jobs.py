"""A run or a sweep as jobs of a scheduler: plain records of the steps that are not done.

    Config + sealed steps  ->  jobs_of, sweep_jobs  ->  [Job]

Shape `generations`: one job runs everything. Shape `phases` has these jobs per generation, where => is `afterok`:
    select => train => sample (array) => sample.seal => encode (array) => encode.seal => evaluate => next select
Arrays first import and encode large sources: import => import.seal => real.encode => prepare or run.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from entroloop.data.jobs import Job
from entroloop.data.runfolder import PREPARE, Layout
from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL
from entroloop.launcher.config import Config
from entroloop.launcher.run.phase import Pieces
from entroloop.launcher.run.phases import BY_NAME
from entroloop.launcher.run.recipes import is_sealed, next_step, steps
from entroloop.launcher.sweep import SweepRun, furthest_shared


def jobs_of(config: Config, file: str) -> list[Job]:
    """The jobs of a run that are not done, predecessors first.

    file  path of the configuration that the jobs read
    """
    layout = Layout(config.run_folder)
    if next_step(is_sealed(layout), config.generations) is None:
        return []
    jobs = list(_import_jobs(config, layout, file))
    if config.slurm.shape == "phases":
        return _chain([*jobs, *_phase_jobs(config, layout, file)])
    overlap = ("--overlap",) if config.slurm.overlap else ()
    return _chain([*jobs, Job("run", "run", ("run", file, *overlap), ranks=True, scratch=True)])


def _chain(jobs: Sequence[Job]) -> list[Job]:
    """Makes every job wait for the job before it."""
    return [jobs[0], *(dataclasses.replace(job, after=(before.key,)) for before, job in itertools.pairwise(jobs))]


def _import_jobs(config: Config, layout: Layout, file: str) -> Iterator[Job]:
    """Jobs that import the source and encode the real images in arrays, where `slurm.import_array` asks for arrays."""
    data, count = config.data, config.slurm.import_array
    if count == 1 or manifest.is_sealed(layout.of(PREPARE)):
        return
    tasks = tuple(range(count))
    if not manifest.is_sealed(Path(data.located)) and not manifest.is_sealed(layout.images):
        target = str(layout.images.absolute())
        given = {"--resolution": data.resolution, "--limit": data.limit, "--split": data.split}
        options = [str(x) for name, value in given.items() if value is not None for x in (name, value)]
        command = ("import", data.located, target, *options, "--shard-size", str(data.shard_size))
        part = ("--part", f"{{task}}::{count}")
        yield Job("import", "import", (*command, *part), tasks=tasks, of=count, attempt=False, needs="cpu")
        yield Job("import.seal", "seal", ("seal", target), attempt=False, needs="cpu")
    command = ("run", file, "--phase", "prepare", "--part", f"{{task}}::{count}")
    yield Job("real.encode", "encode", command, tasks=tasks, of=count, needs="one")


def _phase_jobs(config: Config, layout: Layout, file: str) -> Iterator[Job]:
    sealed = is_sealed(layout)
    for step in steps(config.generations):
        if sealed(step):
            continue
        phase, key = BY_NAME[step.phase], step.phase
        command: tuple[str, ...] = ("run", file, "--phase", step.phase, "--wait", str(config.slurm.seal_wait))
        if step.generation != REAL:
            key = f"generation_{step.generation:04d}.{step.phase}"
            command = (*command, "--generation", str(step.generation))
        if phase.pieces is None:
            ranks = phase.processes != "one"
            yield Job(key, step.phase, command, ranks=ranks, needs=phase.processes, scratch=phase.trains)
            continue
        count, missing = missing_parts(config, layout.of(step), phase.pieces)
        if missing:
            part = ("--part", f"{{task}}::{count}")
            yield Job(key, step.phase, (*command, *part), tasks=missing, of=count, needs=phase.processes)
        yield Job(f"{key}.seal", "seal", command, needs="cpu")


def missing_parts(config: Config, folder: Path, pieces: Pieces) -> tuple[int, tuple[int, ...]]:
    """The number of parts of a step, and the parts that lack a piece (a shard, or a block of features)."""
    total = pieces.count(config)
    count = min(config.slurm.array, total)
    missing = [i for i in range(total) if not pieces.done(config, folder, i)]
    return count, tuple(sorted({i % count for i in missing}))


def sweep_jobs(base: Config, arms: Sequence[SweepRun], file: str) -> list[Job]:
    """Shared work first (an array for leaders, one for leaders of leaders, …), then every arm, then the report."""
    unfinished = [arm for arm in arms if next_step(is_sealed(arm.layout), arm.config.generations) is not None]
    if not unfinished and (base.run_folder / "report.html").exists():
        return []
    jobs: list[Job] = []
    for depth in range(len(arms)):
        leading = [arm for arm in arms if _depth(arm) == depth and _shares_unsealed(arm, arms)]
        if leading:
            tasks = tuple(arms.index(arm) for arm in leading)
            command = ("slurm", "arm", file, "{task}", "--shared")
            jobs.append(_arms(f"shared.{depth}", command, tasks, len(arms)))
    if unfinished:
        tasks = tuple(arms.index(arm) for arm in unfinished)
        jobs.append(_arms("arms", ("slurm", "arm", file, "{task}"), tasks, len(arms)))
    report = Job("report", "report", ("slurm", "conclude", file), attempt=False, needs="cpu")
    ordered = _chain([*jobs, report])
    return [*ordered[:-1], dataclasses.replace(ordered[-1], condition="afterany")]


def _arms(key: str, command: tuple[str, ...], tasks: tuple[int, ...], count: int) -> Job:
    return Job(key, "arm", command, ranks=True, tasks=tasks, of=count, needs="node", scratch=True)


def _shares_unsealed(arm: SweepRun, arms: Sequence[SweepRun]) -> bool:
    """Whether other arms wait for a step of this arm that is not sealed."""
    step = furthest_shared(arm, arms)
    return step is not None and not is_sealed(arm.layout)(step)


def _depth(arm: SweepRun) -> int:
    return 0 if arm.leader is None else 1 + _depth(arm.leader)
