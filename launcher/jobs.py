"""A run, or a sweep, as SLURM jobs: which of them are still to be done, and what they are at.

    Config + what is sealed  ->  jobs (plain records)  ->  entroloop.slurm: scripts and the queue

Shape `generations`: one job runs everything. Shape `phases`, for every generation, where => is `afterok`:
    select => train => sample (array) => sample.seal => encode (array) => encode.seal => evaluate => next select
Large sources are imported and encoded by arrays first: import => import.seal => real.encode => prepare or run.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import yaml

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.store import manifest
from entroloop.data.store.blocks import block_name
from entroloop.data.store.shards import shard_name
from entroloop.launcher.config import Config
from entroloop.launcher.run.lease import Lease
from entroloop.launcher.run.steps import PREPARE, Layout, Step, is_sealed, next_phase, steps
from entroloop.slurm import states
from entroloop.slurm import submit as submission
from entroloop.slurm.sbatch import Job, Site, array_option, render
from entroloop.slurm.submit import Plan

if TYPE_CHECKING:
    from entroloop.launcher import sweep

SUBMITTED = Path("slurm") / "submitted.yaml"


def site_of(folder: Path, threads: int = 1) -> Site:
    """Where a run's jobs work; the mark is a digest of the folder's absolute path."""
    run = folder.absolute()
    return Site(folder.name, run, Path.cwd(), files.digest(str(run.resolve()))[:12], threads)


# -- which jobs are still to be done -----------------------------------------------------------------------------------


def jobs_of(config: Config) -> list[Job]:
    """The jobs of a run that are not done, predecessors first."""
    layout = Layout(config.run_folder)
    if next_phase(is_sealed(layout), config.generations) is None:
        return []
    file = str(layout.run.absolute() / SUBMITTED)
    jobs = list(_import_jobs(config, layout, file))
    if config.slurm.shape == "phases":
        return _chain([*jobs, *_phase_jobs(config, layout, file)])
    overlap = ("--overlap",) if config.slurm.overlap else ()
    return _chain([*jobs, Job("run", "run", ("run", file, *overlap), ranks=True)])


def _chain(jobs: Sequence[Job]) -> list[Job]:
    """Every job waits for the one before it."""
    return [jobs[0], *(_after(job, before.key) for before, job in itertools.pairwise(jobs))]


def _after(job: Job, *keys: str) -> Job:
    return Job(**{**vars(job), "after": keys})


def _import_jobs(config: Config, layout: Layout, file: str) -> Iterator[Job]:
    """Import of the source and features of the real images in arrays, where `slurm.import_array` asks for it."""
    data, count = config.data, config.slurm.import_array
    if count == 1 or manifest.is_sealed(layout.of(PREPARE)):
        return
    tasks = tuple(range(count))
    if not manifest.is_sealed(Path(data.source)) and not manifest.is_sealed(layout.images):
        target = str(layout.images.absolute())
        given = {"--resolution": data.resolution, "--limit": data.limit, "--split": data.split}
        options = [str(x) for name, value in given.items() if value is not None for x in (name, value)]
        command = ("import", data.source, target, *options, "--shard-size", str(data.shard_size))
        part = ("--part", f"{{task}}::{count}")
        yield Job("import", "import", (*command, *part), tasks=tasks, of=count, attempt=False)
        yield Job("import.seal", "seal", ("seal", target), attempt=False)
    command = ("run", file, "--phase", "prepare", "--part", f"{{task}}::{count}")
    yield Job("real.encode", "encode", command, tasks=tasks, of=count)


def _phase_jobs(config: Config, layout: Layout, file: str) -> Iterator[Job]:
    sealed = is_sealed(layout)
    for step in steps(config.generations):
        if sealed(step):
            continue
        command: tuple[str, ...] = ("run", file, "--phase", step.phase, "--wait", str(config.slurm.seal_wait))
        if step == PREPARE:
            yield Job("prepare", "prepare", command)
            continue
        key = f"generation_{step.generation:04d}.{step.phase}"
        command = (*command, "--generation", str(step.generation))
        if step.phase not in ("sample", "encode"):
            yield Job(key, step.phase, command, ranks=True)
            continue
        count, missing = missing_parts(config, layout, step)
        if missing:
            part = ("--part", f"{{task}}::{count}")
            yield Job(key, step.phase, (*command, *part), tasks=missing, of=count)
        yield Job(f"{key}.seal", "seal", command)


def missing_parts(config: Config, layout: Layout, step: Step) -> tuple[int, tuple[int, ...]]:
    """Into how many parts a step is cut, and which of them lack a shard (sample) or a block of features (encode)."""
    shards = -(-config.samples // config.sample.shard_size)
    count, folder = min(config.slurm.array, shards), layout.of(step)

    def done(shard: int) -> bool:
        if step.phase == "sample":
            return (folder / shard_name(shard)).with_suffix(".json").exists()
        return all((folder / block_name(encoder, shard)).exists() for encoder in config.encoders)

    return count, tuple(i for i in range(count) if not all(map(done, range(i, shards, count))))


# -- submitting --------------------------------------------------------------------------------------------------------


def submit_run(config: Config) -> Plan:
    """Submits what is missing of a run. Raises UserError when its folder belongs to another configuration."""
    from entroloop.launcher.run.runner import open_run  # needs torch

    slurm = config.slurm
    submission.check_python(slurm, which(slurm.python), sys.executable)
    layout = open_run(config)
    values = {**config.settled(), "folder": str(Path(config.folder).absolute())}
    _write_config(layout.run, yaml.safe_dump(values, sort_keys=False).encode())
    file = str(layout.run.absolute() / SUBMITTED)
    site = site_of(layout.run, config.threads)
    return _submit(lambda: jobs_of(config), config, site, ("slurm", "submit", file))


def submit_sweep(path: Path, overrides: Sequence[str]) -> Plan:
    """Submits what is missing of a sweep: work that arms share, an array over the arms, and the report."""
    from entroloop.launcher import sweep  # needs torch
    from entroloop.launcher.run.runner import open_run

    base, arms = sweep.arms_of(path, overrides)
    submission.check_python(base.slurm, which(base.slurm.python), sys.executable)
    for arm in arms:
        open_run(arm.config)
    values = {**base.model_dump(mode="json"), "folder": str(Path(base.folder).absolute())}
    _write_config(base.run_folder, yaml.safe_dump(values, sort_keys=False).encode())
    file = str(base.run_folder.absolute() / SUBMITTED)
    site = site_of(base.run_folder, base.threads)
    return _submit(lambda: sweep_jobs(base, arms, file), base, site, ())


def _write_config(run: Path, text: bytes) -> None:
    """Keeps the configuration that the jobs read."""
    files.replace(run / SUBMITTED, lambda file: file.write(text))


def _submit(jobs: Callable[[], list[Job]], config: Config, site: Site, extend: tuple[str, ...]) -> Plan:
    """Holds the submission lease meanwhile: of two submitters the second waits, then finds the first one's jobs."""
    with Lease(site.folder / ".lease-submit", "submitting", patience=180):
        return submission.submit(jobs(), config.slurm, site, extend=extend)


def sweep_jobs(base: Config, arms: Sequence[sweep.Arm], file: str) -> list[Job]:
    """Shared work first (an array for leaders, one for leaders of leaders, …), then every arm, then the report."""
    unfinished = [arm for arm in arms if next_phase(is_sealed(arm.layout), arm.config.generations) is not None]
    if not unfinished and (base.run_folder / "report.html").exists():
        return []
    jobs: list[Job] = []
    for depth in range(len(arms)):
        leading = [arm for arm in arms if _depth(arm) == depth and _shares_unsealed(arm, arms)]
        if leading:
            tasks = tuple(arms.index(arm) for arm in leading)
            command = ("slurm", "arm", file, "{task}", "--shared")
            jobs.append(Job(f"shared.{depth}", "arm", command, ranks=True, tasks=tasks, of=len(arms)))
    if unfinished:
        tasks = tuple(arms.index(arm) for arm in unfinished)
        jobs.append(Job("arms", "arm", ("slurm", "arm", file, "{task}"), ranks=True, tasks=tasks, of=len(arms)))
    report = Job("report", "report", ("slurm", "conclude", file), attempt=False)
    ordered = _chain([*jobs, report])
    return [*ordered[:-1], Job(**{**vars(ordered[-1]), "condition": "afterany"})]


def _shares_unsealed(arm: sweep.Arm, arms: Sequence[sweep.Arm]) -> bool:
    """Whether others wait for something of this arm that is not sealed."""
    from entroloop.launcher.sweep import furthest_shared

    step = furthest_shared(arm, arms)
    return step is not None and not is_sealed(arm.layout)(step)


def _depth(arm: sweep.Arm) -> int:
    return 0 if arm.leader is None else 1 + _depth(arm.leader)


# -- for reading -------------------------------------------------------------------------------------------------------


def said(plan: Plan, run: Path) -> str:
    """What a submission did, in a line or two."""
    lines = [f"replaced {len(plan.cancel)} queued job(s) whose predecessor is gone"] if plan.cancel else []
    for job in plan.submit:
        array = "" if job.tasks is None else f"  tasks {array_option(job.tasks)}"
        lines.append(f"submitted {job.key}{array}")
    if plan.left and not plan.submit:
        lines.append(
            f"{len(plan.left)} job(s) wait for room in the window of {len(plan.live)} queued: submit again later"
        )
    elif plan.left:
        lines.append(f"{len(plan.left)} more job(s) follow when these are through")
    if not lines:
        lines.append("nothing to submit: everything that is left is queued or running" if plan.live else "finished")
    return "\n".join([*lines, f"see: entroloop status {run}"])


def scripts(config: Config, kind: str | None = None) -> str:
    """The scripts of the jobs that are to be done, of one kind or all. Raises UserError when there is none."""
    jobs = jobs_of(config)
    chosen = [job for job in jobs if kind in (None, job.kind)]
    if not chosen:
        kinds = ", ".join(dict.fromkeys(job.kind for job in jobs))
        raise UserError(f"--phase {kind}: the jobs to do are {kinds}" if jobs else f"{config.run_folder}: is finished")
    site, texts = site_of(config.run_folder, config.threads), []
    for job in chosen:
        array = "" if job.tasks is None else f" --array={array_option(job.tasks, config.slurm.at_once)}"
        after = f" --dependency={job.condition}:<{'>:<'.join(job.after)}>" if job.after else ""
        texts.append(f"# ==== {job.key}: sbatch{array}{after}\n{render(job, config.slurm, site)}")
    return "\n".join(texts)


def for_status(folder: Path) -> dict[str, Any]:
    """What `entroloop status` adds for runs with jobs: `jobs` and `queue`, the reason why the queue is unknown."""
    if not (folder / "slurm").is_dir():
        return {}
    site = site_of(folder)
    found, problem = states.read(site.folder, site.mark)
    return {"jobs": states.as_json(found), "queue": problem} if found else {}


def table(jobs: list[dict[str, Any]], problem: str) -> str:
    """The jobs of `for_status` for reading."""
    return states.table([states.JobState(**job) for job in jobs], problem)
