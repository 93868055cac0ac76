"""A training set decoded into memory.

    Dataset + World  ->  Resident.batches  ->  Batch

N samples in the set, B global batch, b = B / W batch of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from entroloop.data.store.dataset import Dataset
from entroloop.data.streams.order import BUFFER, Grouped, rank_batch
from entroloop.data.streams.sharing import decode_together
from entroloop.data.streams.stream import Batch
from entroloop.data.world import World


class Resident:
    """A training set decoded into memory that the ranks of one machine share.

    samples  uint8 [N, C, H, W] or float32 [N, D];  labels int64 [N] or None
    buffer   number of shards shuffled together; with an equal buffer `Streaming` gives the same batches
    """

    def __init__(self, dataset: Dataset, world: World | None = None, *, buffer: int = BUFFER) -> None:
        self.counts, self.buffer = dataset.shard_counts, buffer
        self.samples = torch.from_numpy(decode_together(dataset, world or World()))
        self.labels: Tensor | None = None if dataset.labels is None else torch.from_numpy(dataset.labels)
        self.damaged: list[str] = []  # always empty: a damaged shard stops the run

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""
        return tuple(self.samples.shape[1:])

    def shards(self) -> Iterator[Tensor]:
        """The samples of one shard after another."""
        yield from torch.split(self.samples, list(self.counts))

    def batches(self, *, seed: int, seen: int, until: int, batch: int, rank: int = 0, size: int = 1) -> Iterator[Batch]:
        """The batches of one rank from `seen` to `until` samples; the last batch may extend past `until`."""
        order = Grouped(self.counts, seed, self.buffer)
        mine = rank_batch(batch, size)
        for start in range(seen, until, batch):
            first = start + rank * mine
            ids = order.rows(first, first + mine)
            rows = torch.from_numpy(ids)
            labels = None if self.labels is None else self.labels[rows]
            yield Batch(self.samples[rows], labels, ids, first)
