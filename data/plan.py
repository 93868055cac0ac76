"""Who does what, and with which randomness: pure functions of integers, free of world size where it matters.

Everything random in a run is a function of (run seed, generation, purpose, index). Sample `i` of generation `g`
therefore is the same image on one rank or on 64, and a resumed run draws what the uninterrupted one would have drawn.

N points, W ranks or array tasks.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from entroloop.data.config import HOW, Section
from entroloop.data.errors import UserError

if TYPE_CHECKING:
    import torch


def derive_seed(run_seed: int, generation: int, purpose: str, index: int = 0) -> int:
    """A seed in [0, 2^63) that differs for any two different arguments (as far as BLAKE2b tells them apart)."""
    text = f"{run_seed}/{generation}/{purpose}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(run_seed: int, generation: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator with the seed of `derive_seed`; drawn on the CPU, numbers do not depend on the device."""
    import torch  # not needed where only the configuration is read

    return torch.Generator().manual_seed(derive_seed(run_seed, generation, purpose, index))


def permutation(seed: int, n: int) -> NDArray[np.int64]:
    """A uniform random order of range(n): int64 [n], the same for a seed on every machine (Philox)."""
    return np.random.Generator(np.random.Philox(seed)).permutation(n).astype(np.int64)


def bounds(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Cuts [start, stop) into pieces of `step`, the last one shorter where it does not divide."""
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]


@dataclass(frozen=True)
class Part:
    """The share `index::count` of numbered pieces of work: index, index + count, index + 2 count, …"""

    index: int = 0
    count: int = 1

    def of(self, pieces: int) -> range:
        return range(self.index, pieces, self.count)

    def split(self, rank: int, size: int) -> Part:
        """What rank `rank` of `size` takes of this part."""
        return Part(self.index + self.count * rank, self.count * size)

    def __str__(self) -> str:
        return f"{self.index}::{self.count}"


def parse_part(text: str) -> Part:
    """Reads `i::n`. Raises UserError unless 0 <= i < n."""
    match = re.fullmatch(r"(\d+)::(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--part {text}: give i::n with 0 <= i < n, for example 0::4 for the first of four parts")
    return Part(int(match[1]), int(match[2]))


class DataConfig(Section):
    """The real data of a run, and how training sets are read."""

    source: str
    """A sealed data set, or anything that `entroloop import` takes (it is then imported into the run)."""
    resolution: int | None = Field(None, ge=1)
    """Height and width to which images are brought; null keeps theirs."""
    split: str | None = None
    """Split of a source that has several: `train` or `test`."""
    limit: int | None = Field(None, ge=1)
    """Import at most this many samples; null imports all."""
    size: int = Field(256, ge=2)
    """N: the number of real samples that train generation 0."""
    heldout: int = Field(512, ge=2)
    """Number of real samples kept for the measures."""
    labelled: int = Field(768, ge=0)
    """Number of real images that train the classifier whose features are measured; 0 where no classifier is used."""
    split_seed: int = 0
    """Decides which samples are held out and labelled; runs with the same value are measured alike."""
    shard_size: int = Field(1024, ge=1)
    """Samples per shard of the imported set and of training sets."""
    buffer: int = Field(16, ge=1)
    """Number of shards of a training set whose samples are shuffled together."""
    selected: Literal["shards", "index"] = "shards"
    """Training sets are written as `shards`, or as an `index` of samples that stay where they are."""
    mode: Annotated[Literal["auto", "resident", "streaming"], HOW] = "auto"
    """`resident` decodes a training set once into memory; `streaming` reads the shards while training; `auto` is
    resident where the set takes at most `memory_share` of the free memory."""
    workers: Annotated[int, HOW] = Field(1, ge=0)
    """Processes per rank that read ahead when streaming; 0 reads in the training process."""
    memory_share: Annotated[float, HOW] = Field(0.25, gt=0, le=1)
    """Share of the free memory that a resident training set may take (`mode: auto`)."""
    skip_damaged: Annotated[bool, HOW] = False
    """Leave out samples that cannot be read, count and report them, instead of stopping. It streams. Only here may a
    run's training samples differ from those its recipe names."""


@dataclass(frozen=True)
class RealSplit:
    """Rows of the real data set, by use; no row has two uses.

    training  the images of generation 0, int64 [N], sorted
    heldout   real images no generator and no classifier sees, for the measures
    labelled  for the classifier whose features selection and measures use
    fresh     never used yet, in the order in which the `fresh` paradigm takes them
    """

    training: NDArray[np.int64]
    heldout: NDArray[np.int64]
    labelled: NDArray[np.int64]
    fresh: NDArray[np.int64]


def split_real(count: int, size: int, heldout: int, labelled: int, *, split_seed: int, run_seed: int) -> RealSplit:
    """Splits `count` real rows: held-out and labelled by `split_seed` alone, so that all runs are measured alike; which
    of the others train generation 0 also depends on `run_seed`.

    Raises UserError when more rows are asked for than there are.
    """
    wanted = size + heldout + labelled
    if wanted > count:
        raise UserError(
            f"data.size={size}, data.heldout={heldout} and data.labelled={labelled} ask for {wanted} real images, "
            f"but the source has {count}: lower one of them"
        )
    order = permutation(derive_seed(split_seed, 0, "real split"), count)
    rest = order[heldout + labelled :]
    rest = rest[permutation(derive_seed(run_seed, 0, "real training"), len(rest))]
    return RealSplit(
        training=np.sort(rest[:size]),
        heldout=np.sort(order[:heldout]),
        labelled=np.sort(order[heldout : heldout + labelled]),
        fresh=rest[size:],
    )
