"""What a phase is: one value that says all that the rest of the program knows of it.

To add a phase, write a file in `phases/` that makes a `Phase`, and name it in `phases.PHASES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entroloop.data.jobs import Needs
from entroloop.data.runfolder import Layout, Step

if TYPE_CHECKING:
    from entroloop.data.seeds import Part
    from entroloop.data.world import World
    from entroloop.launcher.config import Config
    from entroloop.launcher.run.context import Context


def _nothing(*_: Any) -> Any:
    return ()


@dataclass(frozen=True)
class Pieces:
    """What a phase is cut into for the tasks of a job array.

    count  how many pieces there are
    done   whether a piece is already in the step's folder
    """

    count: Callable[[Config], int]
    done: Callable[[Config, Path, int], bool]


@dataclass(frozen=True)
class Phase:
    """One kind of step. Functions of (config, generation) are pure; nothing here imports torch before `work` is called.

    reads      the steps whose sealed folders it reads, beside those of phases that are done once
    outside    sealed folders from outside the run that it reads, by their name in the seal's `made_from`
    decides    the plain configuration values that decide its result, beside those that decide what it reads
    work       does a step, or a part of it, on every rank, and returns what the log says; without a part it seals
    forecast   its line of the dry run
    once       it is done once, for the real data, before generation 0
    in_parts   whether `--part` is allowed
    pieces     its tasks in a job array; None where one job does it
    processes  that one job uses: a single one, those of one node, or all that the section `slurm` asks for
    trains     it reads training shards, which jobs copy to the node's own disk first
    encodes    it calls the configured encoders, which are tried before anything begins
    ready      raises UserError where a step could not be done for what it reads from outside the run
    fits       raises UserError where these processes cannot do it
    begins     folders beside its own in which an unfinished step leaves files
    removable  whether the configuration lets its large files go; None: they always stay
    spared     how many of its large files stay all the same
    """

    name: str
    reads: Callable[[Config, int], Iterable[Step]]
    decides: Callable[[Config, int], dict[str, Any]]
    work: Callable[[Context, Step, Part | None], str]
    forecast: Callable[[Config, int], str]
    outside: Callable[[Config, int], dict[str, Path]] = lambda config, generation: {}
    once: bool = False
    in_parts: bool = False
    pieces: Pieces | None = None
    processes: Needs = "all"
    trains: bool = False
    encodes: bool = False
    ready: Callable[[Config, Layout], object] = _nothing
    fits: Callable[[Config, World], object] = _nothing
    begins: Callable[[Layout, int], Iterable[Path]] = _nothing
    removable: Callable[[Config], bool] | None = None
    spared: int = 0
