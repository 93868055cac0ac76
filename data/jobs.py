"""A piece of a run's work for a scheduler, as a plain record that names no scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Needs = Literal["cpu", "one", "node", "all"]  # one process without a GPU, one process, all of one node, or all


@dataclass(frozen=True)
class Job:
    """One batch job, or one array of them.

    key        its name within the run: `generation_0001.train`
    kind       decides, with `needs`, the resources it asks for: `train`, `sample`, …
    arguments  of `entroloop`; in an array `{task}` is replaced by the number of the task
    ranks      True: all processes of all nodes form one process group; False: a single process runs
    after      keys of the jobs that it waits for
    condition  `afterok`: it waits until the jobs in `after` have succeeded; `afterany`: until these jobs have ended
    tasks      the array's tasks that are still to do; None for a job that is not an array
    of         number of tasks in the whole array
    attempt    whether the command can report how it ended (`run --state FILE`)
    needs      the processes that it uses
    scratch    whether its command takes `--scratch`, a folder on the node's own disk for training shards
    extends    arguments of the command by which a successful job submits the jobs that did not fit into the window
    """

    key: str
    kind: str
    arguments: tuple[str, ...]
    ranks: bool = False
    after: tuple[str, ...] = ()
    condition: Literal["afterok", "afterany"] = "afterok"
    tasks: tuple[int, ...] | None = None
    of: int = 1
    attempt: bool = True
    needs: Needs = "all"
    scratch: bool = False
    extends: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of jobs as the scheduler counts them."""
        return 1 if self.tasks is None else len(self.tasks)
