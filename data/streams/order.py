"""The sample at each position of the endless stream of a training set: a pure function of (counts, seed).

The stream is an endless sequence of epochs. Each epoch is a seeded permutation of all samples. A global batch is the
next B positions; rank r of W trains on the r-th of W equal pieces. So the global batches are the same at any world
size, every epoch contains each sample once, and resuming needs only the number of samples seen.

N samples in the set, B global batch, b = B / W batch of a rank.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.seeds import permutation

BUFFER = 16  # shards whose samples are shuffled together


class Order:
    """The endless order of `count` samples. Keeps the permutations of the last two epochs."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def epoch(self, number: int) -> NDArray[np.int64]:
        if number not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k == number - 1}
            # Seeds of neighbouring epochs must not collide with seeds of neighbouring runs.
            mixed = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0]
            self._epochs[number] = permutation(int(mixed), self.count)
        return self._epochs[number]

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """The samples at positions start … stop - 1: int64 [stop - start]."""
        pieces = [np.empty(0, np.int64)]
        while start < stop:
            pieces.append(self._following(*divmod(start, self.count))[: stop - start])
            start += len(pieces[-1])
        return np.concatenate(pieces)

    def _following(self, epoch: int, offset: int) -> NDArray[np.int64]:
        """The samples from a position of an epoch on, at least one and as many as are known at once."""
        return self.epoch(epoch)[offset:]


class Grouped(Order):
    """The endless order of a set in shards. An epoch permutes the shards, then the samples of each `buffer` shards.

    counts  samples of each shard

    With at most `buffer` shards the order is that of `Order`.
    """

    def __init__(self, counts: list[int], seed: int, buffer: int = BUFFER) -> None:
        super().__init__(sum(counts), seed)
        self.counts = np.array(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.buffer = buffer

    def _following(self, epoch: int, offset: int) -> NDArray[np.int64]:
        if len(self.counts) <= self.buffer:
            return super()._following(epoch, offset)
        _, ends = self._shards(epoch)
        group = int(np.searchsorted(ends, offset, side="right"))
        first = int(ends[group - 1]) if group else 0
        return self._group(epoch, group)[offset - first :]

    @functools.lru_cache(maxsize=8)  # noqa: B019 - keeps at most eight small orders alive
    def _shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of an epoch's shards, and the position within the epoch at which each group of shards ends."""
        shards = permutation(self._seed(epoch, 0), len(self.counts))
        ends = np.cumsum(np.add.reduceat(self.counts[shards], np.arange(0, len(shards), self.buffer)))
        return shards, ends

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _group(self, epoch: int, group: int) -> NDArray[np.int64]:
        shards = self._shards(epoch)[0][group * self.buffer : (group + 1) * self.buffer]
        rows = np.concatenate([np.arange(self.starts[s], self.starts[s + 1]) for s in shards])
        return rows[permutation(self._seed(epoch, group + 1), len(rows))]

    def _seed(self, epoch: int, group: int) -> int:
        return int(np.random.SeedSequence([self.seed, epoch, group]).generate_state(1, np.uint64)[0])


def rank_batch(batch: int, size: int) -> int:
    """B / W. Raises UserError when the world size does not divide the global batch."""
    if batch % size:
        raise UserError(f"train.batch={batch} does not divide over {size} processes: use a multiple of {size}")
    return batch // size
