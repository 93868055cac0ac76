"""The protocol through which training reads batches of a set, in memory or streamed.

    TrainingStream.batches  ->  Batch

N samples in the set, b batch of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The samples that a rank trains on in one step.

    samples   uint8 [b, C, H, W] or float32 [b, D]
    labels    int64 [b], or None
    ids       rows of the training set, int64 [b]
    position  of the first sample in the endless stream
    """

    samples: Tensor
    labels: Tensor | None
    ids: NDArray[np.int64]
    position: int


class TrainingStream(Protocol):
    """A training set as batches. Every implementation gives equal batches for equal arguments.

    damaged  one line per sample that could not be read and was left out; empty if the stream stops at such a sample
    """

    damaged: list[str]

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""

    @property
    def labels(self) -> Tensor | None:
        """int64 [N], or None for an unlabelled set."""

    def shards(self) -> Iterator[Tensor]:
        """The samples of one shard after another: uint8 [n, C, H, W] or float32 [n, D]."""

    def batches(self, *, seed: int, seen: int, until: int, batch: int, rank: int = 0, size: int = 1) -> Iterator[Batch]:
        """The batches of one rank from `seen` to `until` samples; the last batch may extend past `until`.

        Raises UserError when the world size does not divide the global batch, or when a shard is damaged.
        """
