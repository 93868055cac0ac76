"""The states of a run's jobs, from the queue, the notes of their scripts and SLURM's records of ended jobs."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entroloop.data.errors import UserError
from entroloop.slurm import client
from entroloop.slurm.client import Entry
from entroloop.slurm.sbatch import site_of

TAIL = 8  # lines of a failed job's log that are shown
LOST = {"CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "FAILED", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}


@dataclass(frozen=True)
class JobState:
    """One job or array task.

    state  queued, running, completing, finished, failed, interrupted, cancelled, lost (it began and nobody knows how it
           ended) or unknown (the queue cannot be asked)
    """

    key: str
    id: str
    state: str
    task: int | None = None
    node: str = ""
    reason: str = ""
    log: str = ""


def read(folder: Path, mark: str, patience: float = 10.0) -> tuple[list[JobState], str]:
    """The state of each job's and task's newest submission, in the order of submission, and why the queue is unknown,
    or ''.

    folder  the run's `slurm` folder
    """
    records = _records(folder)
    if not records:
        return [], ""
    problem, entries = "", []
    try:
        entries = client.queued(mark, patience)
    except UserError as error:
        problem = str(error)
    live = {(e.key, e.task): e for e in entries}
    notes = {place: _note(folder, *place) for place in records}
    unclear = [id_ for place, id_ in records.items() if place not in live and _state(notes[place], id_) is None]
    final = {} if problem or not unclear else client.ended(unclear, patience)
    found = []
    order = list(dict.fromkeys(key for key, _ in [*records, *live]))
    for place in sorted({*records, *live}, key=lambda p: (order.index(p[0]), -1 if p[1] is None else p[1])):
        id_ = live[place].id if place in live else records[place]
        found.append(_judge(folder, place, id_, live.get(place), notes.get(place) or {}, None if problem else final))
    return found, problem


def _records(folder: Path) -> dict[tuple[str, int | None], str]:
    """(key, task) -> id of its newest submission."""
    found: dict[tuple[str, int | None], str] = {}
    try:
        lines = (folder / "jobs.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        value = json.loads(line)
        for task in value["tasks"] if value["tasks"] is not None else (None,):
            own = None if task is None else task + value["offset"]
            found[value["key"], own] = value["id"] if task is None else f"{value['id']}_{task}"
    return found


def _note(folder: Path, key: str, task: int | None) -> dict[str, str]:
    """The last note of the job's script; empty if there is none."""
    try:
        text = (folder / "attempts" / (key if task is None else f"{key}-{task}")).read_text()
    except FileNotFoundError:
        return {}
    return dict(zip(("state", "id", "node", "reason"), text.rstrip("\n").split("\t"), strict=False))


def _state(note: Mapping[str, str], id_: str) -> str | None:
    """How a job that left the queue ended, as its script noted; None if the script noted no end."""
    if note.get("id") != id_ or note["state"] in ("running", "requeued"):
        return None
    return note["state"]


def _judge(
    folder: Path, place: tuple[str, int | None], id_: str, entry: Entry | None, note: Mapping[str, str],
    final: Mapping[str, str] | None,
) -> JobState:  # fmt: skip
    key, task = place
    log = f"{folder}/logs/{key}-{id_}.log"
    node, reason = note.get("node", ""), note.get("reason", "")
    if entry is not None:
        if entry.state in ("RUNNING", "COMPLETING"):
            return JobState(key, id_, entry.state.lower(), task, entry.node, "", log)
        before = f"; {note['reason']}" if note.get("state") == "requeued" else ""
        return JobState(key, id_, "queued", task, "", f"{entry.reason}{before}", log)
    state = _state(note, id_)
    if final is None and state is None:
        return JobState(key, id_, "unknown", task, node, reason, log)
    ended = (final or {}).get(id_, "")
    if ended in LOST and state in (None, "interrupted"):
        how = "cancelled" if ended == "CANCELLED" else "failed"
        return JobState(key, id_, how, task, node, reason or f"ended by the cluster: {ended.lower()}", log)
    if state is None and note.get("id") != id_:  # tasks that are cancelled while they wait leave no trace
        return JobState(key, id_, "cancelled", task, "", "left the queue before it began", log)
    return JobState(key, id_, state or "lost", task, node, reason, log)


def tail(path: Path) -> list[str]:
    """The last lines of a log; none where it is gone."""
    try:
        return path.read_text(errors="replace").rstrip().splitlines()[-TAIL:]
    except OSError:
        return []


def table(found: list[JobState], problem: str = "") -> str:
    """Text: one line per job, with an array's tasks counted together, and the last log lines of failed jobs."""
    lines = [f"jobs (queue not asked: {problem})" if problem else "jobs"]
    for key in dict.fromkeys(job.key for job in found):
        mine = [job for job in found if job.key == key]
        counts = Counter(job.state for job in mine)
        states = ", ".join(f"{n} {state}" for state, n in counts.items()) if mine[0].task is not None else mine[0].state
        where = ",".join(dict.fromkeys(job.node for job in mine if job.state == "running"))
        why = next(
            (job.reason for job in mine if job.state in ("failed", "lost", "interrupted", "cancelled", "unknown")), ""
        )
        why = why or next((job.reason for job in mine if job.state == "queued"), "")
        number = mine[0].id.partition("_")[0]
        lines.append(f"  {key:<28} {number:>8}  {states}{f' on {where}' if where else ''}{f' ({why})' if why else ''}")
    for job in [job for job in found if job.state == "failed"][:3]:
        lines += [f"log of {job.key} {job.id}: {job.log}", *(f"  | {line}" for line in tail(Path(job.log)))]
    return "\n".join(lines)


def for_status(folder: Path) -> dict[str, Any]:
    """The entries that `entroloop status` adds for runs with jobs: `jobs`, and `queue`, why the queue is unknown."""
    site = site_of(folder)
    found, problem = read(site.folder, site.mark)
    return {"jobs": [dataclasses.asdict(job) for job in found], "queue": problem} if found else {}
