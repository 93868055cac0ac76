"""A phase as one value that holds all that the rest of the program knows about the phase.

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
    """The pieces of a phase, for the tasks of a job array.

    count  how many pieces there are
    done   whether a piece is already in the step's folder
    """

    count: Callable[[Config], int]
    done: Callable[[Config, Path, int], bool]


@dataclass(frozen=True)
class Phase:
    """One kind of step. Functions of (config, generation) are pure; nothing here imports torch before `work` is called.

    reads      the steps whose sealed folders the phase reads, besides those of the phases that are done once
    outside    sealed folders from outside the run that the phase reads, by their name in the seal's `made_from`
    decides    the plain configuration values that decide its result; the recipes of its inputs also decide it
    work       does a step, or a part of it, on every rank, and returns the text for the log; without a part it seals
    forecast   its line of the dry run
    once       whether it is done once, for the real data, before generation 0
    in_parts   whether `--part` is allowed
    pieces     its tasks in a job array; None where one job does it
    processes  the processes of one job: one, all of one node, or all that the section `slurm` asks for
    trains     whether it trains: it has checkpoints, and reads shards that jobs first copy to the node's own disk
    encodes    whether it calls the configured encoders, which are tried before anything begins
    ready      raises UserError where an input from outside the run would make a step fail
    fits       raises UserError where these processes cannot do the phase
    begins     further folders in which an unfinished step leaves files
    removable  whether the configuration allows deleting its large files; None: they are always kept
    spared     number of large files that are kept even then
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
