"""Submits a run's pending jobs: only those that are not queued yet, within a window, with dependencies.

    jobs that are not done (in order) + entries of the queue  ->  plan  ->  sbatch  ->  <run>/slurm/jobs.jsonl

`<run>/slurm` holds the scripts, the logs, `jobs.jsonl` (one line per submission) and `attempts` (the scripts' notes).
Callers hold a lease while they submit. Every job has a comment in the queue, which identifies the job even if its
submitter died before it noted the job's number.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.jobs import Job
from entroloop.data.wording import counted
from entroloop.slurm import client
from entroloop.slurm.client import Entry
from entroloop.slurm.config import SlurmConfig
from entroloop.slurm.sbatch import Site, array_option, chunks, render

SETTLING = 30.0  # seconds to wait for jobs that are just ending: they either leave the queue or are requeued


@dataclass
class Plan:
    """Jobs to submit in order, entries to cancel first, jobs without room in the window, entries that stay queued."""

    submit: list[Job] = field(default_factory=list)
    cancel: list[str] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)
    live: list[Entry] = field(default_factory=list)


def plan(jobs: Sequence[Job], entries: Sequence[Entry], window: int, extend: tuple[str, ...] = ()) -> Plan:
    """The pending jobs to submit now.

    jobs     all jobs that are not done, predecessors first
    entries  the run's entries in the queue
    window   number of jobs and tasks that may be queued at once
    extend   command that submits the rest; the last job runs it if the window has no room for all

    A queued job is replaced if its predecessor has to be submitted again, because it waits for the old predecessor.
    """
    found = Plan(cancel=[e.id for e in entries if e.doomed], live=[e for e in entries if not e.doomed])
    renewed: set[str] = set()
    wanted: list[Job] = []
    for job in jobs:
        here = [e for e in found.live if e.key == job.key]
        if here and renewed & {*job.after} and all(e.state == "PENDING" for e in here):
            found.cancel += [e.id for e in here]
            found.live = [e for e in found.live if e.key != job.key]
            here = []
        todo = _todo(job, here)
        if todo is not None:
            renewed.add(job.key)
            wanted.append(todo)
    room = window - len(found.live)
    while wanted and wanted[0].size <= room:
        room -= wanted[0].size
        found.submit.append(wanted.pop(0))
    if wanted:  # the last single job submits the rest of the chain
        while found.submit and found.submit[-1].tasks is not None and extend:
            wanted.insert(0, found.submit.pop())
        if found.submit and extend:
            found.submit[-1] = dataclasses.replace(found.submit[-1], extends=extend)
    found.left = wanted
    return found


def _todo(job: Job, here: Sequence[Entry]) -> Job | None:
    """The part of a job that is not in the queue; None if there is no such part."""
    if not here:
        return job if job.size else None
    if job.tasks is None or any(e.of != job.of for e in here):  # an array divided otherwise covers the same work
        return None
    taken = {e.task for e in here}
    tasks = tuple(task for task in job.tasks if task not in taken)
    return dataclasses.replace(job, tasks=tasks) if tasks else None


def submit(jobs: Sequence[Job], config: SlurmConfig, site: Site, *, extend: tuple[str, ...] = ()) -> Plan:
    """Submits the jobs that are not queued, and returns the plan. The caller holds the run's submission lease."""
    found = plan(jobs, settled(site.mark), config.window, extend if config.shape == "phases" else ())
    if found.cancel:
        client.call(["scancel", *found.cancel])
    most = client.max_array_size() if any(job.tasks is not None for job in found.submit) else 1
    for name in ("logs", "scripts", "attempts"):
        (site.folder / name).mkdir(parents=True, exist_ok=True)
    numbers: dict[str, set[str]] = {}
    for e in found.live:
        numbers.setdefault(e.key, set()).add(e.job)
    for job in found.submit:
        _forget(job, site)
        script = site.folder / "scripts" / f"{job.key}.sh"
        files.put(script, render(job, config, site).encode())
        waits = sorted({n for key in job.after for n in numbers.get(key, ())}, key=int)
        depends = [f"--dependency={job.condition}:{':'.join(waits)}"] if waits else []
        for offset, tasks in [(0, None)] if job.tasks is None else chunks(job.tasks, most):
            array = [] if tasks is None else [f"--array={array_option(tasks, config.at_once)}"]
            comment = f"--comment={site.comment(job, offset)}"
            number = client.call(["sbatch", "--parsable", *depends, *array, comment, str(script), str(offset)])
            number = number.strip().partition(";")[0]
            numbers.setdefault(job.key, set()).add(number)
            line = {"id": number, "key": job.key, "kind": job.kind, "offset": offset, "tasks": tasks}
            files.add_line(site.folder / "jobs.jsonl", line)
    return found


def said(plan: Plan, run: Path) -> str:
    """A submission told in a few lines."""
    lines = [f"replaced {counted(len(plan.cancel), 'queued job')} whose predecessor is gone"] if plan.cancel else []
    for job in plan.submit:
        array = "" if job.tasks is None else f"  tasks {array_option(job.tasks)}"
        lines.append(f"submitted {job.key}{array}")
    if plan.left and not plan.submit:
        lines.append(
            f"{counted(len(plan.left), 'job')} must wait for room in the window of {len(plan.live)} queued: "
            "submit again later"
        )
    elif plan.left:
        lines.append(f"{counted(len(plan.left), 'more job')} will follow when these have finished")
    if not lines:
        lines.append("nothing to submit: everything that is left is queued or running" if plan.live else "finished")
    return "\n".join([*lines, f"see: entroloop status {run}"])


def settled(mark: str) -> list[Entry]:
    """The run's entries in the queue once none of them is just ending, or after SETTLING seconds."""
    start = time.monotonic()
    while True:
        entries = client.queued(mark)
        ending = [e for e in entries if e.state == "COMPLETING" and e.job != os.environ.get("SLURM_JOB_ID")]
        if not ending or time.monotonic() - start > SETTLING:
            return entries
        time.sleep(0.5)


def _forget(job: Job, site: Site) -> None:
    """Removes the notes of a job's earlier submissions, so that its failures are counted from now on."""
    for task in job.tasks if job.tasks is not None else ("",):
        name = f"{job.key}-{task}" if job.tasks is not None else job.key
        for ending in ("", ".failures", ".json"):
            (site.folder / "attempts" / f"{name}{ending}").unlink(missing_ok=True)


def cancel(mark: str) -> list[str]:
    """Cancels every queued and running job of a run, dependents first, and returns their numbers."""
    numbers = sorted({e.job for e in client.queued(mark) if e.state != "COMPLETING"}, key=int, reverse=True)
    if numbers:
        client.call(["scancel", *numbers])
    return numbers


def check_python(config: SlurmConfig, found: str | None, mine: str) -> None:
    """Raises UserError when jobs, which inherit this environment, would start another Python than this one.

    found  full path of `config.python` in this environment
    mine   full path of this process's Python
    """
    if config.setup or config.prefix:
        return  # the jobs set up their own environment
    if found is None or not os.path.exists(found) or os.path.dirname(found) != os.path.dirname(mine):
        raise UserError(
            f"slurm.setup: empty, and the jobs' `{config.python}` would be {found or 'missing'} rather than {mine}: "
            "give the lines that activate the environment, or activate it before submitting"
        )
