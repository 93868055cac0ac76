"""Jobs -> the text of their batch scripts. This module writes no files and starts no commands.

    Job (what to run) + SlurmConfig (what to ask for) + Site (where the run is) -> script text

Every script starts its one command and passes the cluster's signals on to the command. From the way the command ended,
the script decides whether the job is done, is queued again, or stops the chain. The script notes the outcome in small
files below the run's `slurm` folder, so `entroloop status` needs no accounting database.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.jobs import Job
from entroloop.slurm.config import Resources, SlurmConfig, seconds


@dataclass(frozen=True)
class Site:
    """The places of a run: its absolute folder, the working directory of its jobs, and the mark of its jobs.

    mark  identifies the run's jobs in the queue; no other run has the same mark
    """

    name: str
    run: Path
    cwd: Path
    mark: str
    threads: int = 1

    @property
    def folder(self) -> Path:
        return self.run / "slurm"

    def comment(self, job: Job, offset: int = 0) -> str:
        """The job's comment in the queue, which identifies the job even if its number was lost."""
        return f"entroloop {self.mark} {job.key} {offset} {job.of}"


def site_of(folder: Path, threads: int = 1) -> Site:
    """The Site of a run folder. The mark is a digest of the folder's absolute path."""
    run = folder.absolute()
    return Site(folder.name, run, Path.cwd(), files.digest(str(run.resolve()))[:12], threads)


def render(job: Job, config: SlurmConfig, site: Site) -> str:
    """The batch script of a job. The script's one argument is the number to add to SLURM_ARRAY_TASK_ID."""
    wanted = config.of(job.kind, job.needs)
    return _environment().get_template("job.sh.j2").render(
        job=job, config=config, site=site, wanted=wanted, ranks=wanted.ranks if job.ranks else 1,
        options=_options(job, config, site, wanted), arguments=" ".join(_quoted(a) for a in job.arguments),
        extends=" ".join(map(shlex.quote, job.extends)), q=lambda value: shlex.quote(str(value)),
        scratch=config.scratch if job.scratch else None, shutdown=max(1, config.lead - 30),
    )  # fmt: skip


def scripts(jobs: Sequence[Job], config: SlurmConfig, site: Site, kind: str | None = None) -> str:
    """The scripts of the given jobs, of one kind or all. Raises UserError when there is none."""
    chosen = [job for job in jobs if kind in (None, job.kind)]
    if not chosen:
        kinds = ", ".join(dict.fromkeys(job.kind for job in jobs))
        raise UserError(f"--phase {kind}: the jobs to do are {kinds}" if jobs else f"{site.run}: is finished")
    texts = []
    for job in chosen:
        array = "" if job.tasks is None else f" --array={array_option(job.tasks, config.at_once)}"
        after = f" --dependency={job.condition}:<{'>:<'.join(job.after)}>" if job.after else ""
        texts.append(f"# ==== {job.key}: sbatch{array}{after}\n{render(job, config, site)}")
    return "\n".join(texts)


def _options(job: Job, config: SlurmConfig, site: Site, wanted: Resources) -> list[str]:
    """The `#SBATCH` lines."""
    log = f"{site.folder}/logs/{job.key}".replace("%", "%%") + ("-%A_%a.log" if job.tasks is not None else "-%j.log")
    gpu = ":".join(filter(None, ("gpu", wanted.gpu_type, str(wanted.gpus_per_node))))
    given = {
        "job-name": f"{site.name}.{job.key}",
        "comment": site.comment(job),
        "chdir": str(site.cwd),
        "output": log,
        "open-mode": "append",
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "nodes": wanted.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": wanted.cpus_per_node,
        "gres": gpu if wanted.gpus_per_node else None,
        "mem": wanted.memory,
        "time": sbatch_time(wanted.time or config.time),
        "signal": f"B:USR1@{config.lead}",
        "kill-on-invalid-dep": "yes",
    }
    lines = [f"--{name}={_option(str(value))}" for name, value in given.items() if value is not None]
    return [*lines, "--requeue", *(wanted.lines or ())]


def _option(value: str) -> str:
    """A value as sbatch reads it in its option lines: in double quotes if needed, with `"` and `\\` escaped."""
    if re.fullmatch(r"[\w@%+=:,./&|*!-]+", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def sbatch_time(time: str) -> str:
    """A time limit as `days-hours:minutes:seconds`."""
    minutes, rest = divmod(seconds(time), 60)
    days, minutes = divmod(minutes, 24 * 60)
    return f"{days}-{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def _quoted(argument: str) -> str:
    """An argument for bash; `{task}` becomes the task's number."""
    return '"$task"'.join(shlex.quote(piece) if piece else "" for piece in argument.split("{task}")) or "''"


def array_option(tasks: Sequence[int], at_once: int | None = None) -> str:
    """Numbers in the form of `sbatch --array`: 0-3,7%2."""
    runs: list[list[int]] = []
    for task in sorted(tasks):
        if runs and task == runs[-1][1] + 1:
            runs[-1][1] = task
        else:
            runs.append([task, task])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"{text}%{at_once}" if at_once else text


def chunks(tasks: Sequence[int], most: int) -> list[tuple[int, tuple[int, ...]]]:
    """Divides the tasks of an array into (offset, numbers below `most`): a task is the offset plus a number."""
    by_offset: dict[int, list[int]] = {}
    for task in sorted(tasks):
        by_offset.setdefault(task // most * most, []).append(task % most)
    return [(offset, tuple(found)) for offset, found in by_offset.items()]


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("entroloop.slurm"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
