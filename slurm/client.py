"""Questions to SLURM about a run's jobs: `squeue`, `scontrol` and, if the cluster has accounting, `sacct`.

Every call has a time limit, because SLURM's commands try for a minute when they cannot reach the controller.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from entroloop.data.errors import UserError

PATIENCE = 45.0  # seconds for one call


@dataclass(frozen=True)
class Entry:
    """One job or array task in the queue.

    id      `12`, or `12_3` for a task
    task    its number within the run's array; None for a single job
    of      number of tasks in the whole array
    state   as squeue names it: PENDING, RUNNING, COMPLETING, …
    reason  why it is pending
    """

    id: str
    key: str
    state: str
    reason: str = ""
    node: str = ""
    task: int | None = None
    of: int = 1

    @property
    def job(self) -> str:
        """The job number that dependencies name."""
        return self.id.partition("_")[0]

    @property
    def doomed(self) -> bool:
        """Whether it waits for a job that has failed."""
        return self.reason == "DependencyNeverSatisfied"


def call(arguments: Sequence[str], patience: float = PATIENCE) -> str:
    """Standard output of a SLURM command. Raises UserError when the command is missing, gives no answer or fails.

    patience  seconds to wait for the answer
    """
    name = arguments[0]
    if shutil.which(name) is None:
        raise UserError(f"{name}: no such command: run this where SLURM's commands are, on a login node")
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{name}: no answer from the cluster in {patience:.0f} s: try again later") from error
    if done.returncode:
        said = re.sub(rf"^{name}: ((error|fatal): )?", "", done.stderr or done.stdout, flags=re.MULTILINE)
        lines = filter(None, map(str.strip, said.splitlines()))
        raise UserError(f"{name}: {'; '.join(lines) or f'ended with status {done.returncode}'}")
    return done.stdout


def queued(mark: str, patience: float = PATIENCE) -> list[Entry]:
    """The jobs and array tasks of one run that are pending, running or just ending."""
    text = call(["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N|%k"], patience)
    return parse(text, mark)


def parse(text: str, mark: str) -> list[Entry]:
    """Entries of the run `mark` from lines `id|state|reason|nodes|comment`; lines of other jobs are skipped."""
    found = []
    for line in text.splitlines():
        fields = line.split("|", 4)
        match = re.fullmatch(rf"entroloop {mark} (\S+) (\d+) (\d+)", fields[-1].strip())
        if len(fields) < 5 or match is None:
            continue
        number, state, reason, node, _ = fields
        _, underscore, task = number.partition("_")
        own = int(task) + int(match[2]) if underscore and task.isdigit() else None
        found.append(Entry(number, match[1], state, reason, node, own, int(match[3])))
    return found


def max_array_size() -> int:
    """Array task numbers must be below this."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]), re.MULTILINE)
    return int(match[1]) if match else 1001


def ended(numbers: Sequence[str], patience: float = 10.0) -> dict[str, str]:
    """Final states of jobs that left the queue, by id, where SLURM still knows them: FAILED, CANCELLED, TIMEOUT, …"""
    found: dict[str, str] = {}
    for number in dict.fromkeys(n.partition("_")[0] for n in numbers):
        try:
            text = call(["scontrol", "--oneliner", "show", "job", number], patience)
        except UserError:
            continue
        for line in text.splitlines():
            facts = dict(re.findall(r"(\w+)=(\S+)", line))
            task = facts.get("ArrayTaskId", "")
            found[f"{number}_{task}" if task.isdigit() else number] = facts.get("JobState", "")
    unknown = [n for n in numbers if n not in found]
    if unknown and shutil.which("sacct"):
        try:
            text = call(["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(unknown)], patience)
        except UserError:
            return found  # clusters without accounting have the command too
        for line in text.splitlines():
            number, _, state = line.partition("|")
            found[number] = state.split(" ")[0]
    return found
