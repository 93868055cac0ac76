"""Training batches of sets larger than memory: the same batches as in memory, read sample by sample from the shards.

    Dataset (local, or remote behind a cache)  ->  Streaming.batches  ->  Batch

The shard's sealed columns give the position of every sample in its tar. So a rank reads and decodes only its own
samples, and resuming reads only the next batch. Memory holds a few prefetched batches and the columns of a few shards.
Every sample is checked against its sealed CRC-32. A damaged or changed shard stops the run, and the error names it.

Both streams use the order of `Grouped`: it shuffles the shards, then all samples of every `buffer` neighbouring shards.
A rank therefore reads a few files at a time, which suits disks, network file systems and caches.

N samples, B global batch, b = B / W batch of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from entroloop.data.errors import UserError
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.reader import Reader
from entroloop.data.streams.order import BUFFER, Grouped, rank_batch
from entroloop.data.streams.stream import Batch

PREFETCH = 4  # batches that a worker keeps ready


class Streaming:
    """A training set read from its shards while it is used; the counterpart of `Resident`.

    workers       number of processes that read and decode ahead; 0 reads in this process
    buffer        number of shards shuffled together
    skip_damaged  replaces a damaged sample by another sample of the batch and adds a line to `damaged`, instead of
                  stopping the run
    """

    def __init__(self, dataset: Dataset, *, workers: int = 1, buffer: int = BUFFER, skip_damaged: bool = False) -> None:
        self.dataset = dataset
        self.workers, self.buffer, self.skip_damaged = workers, buffer, skip_damaged
        self.damaged: list[str] = []

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dataset.shape

    @property
    def labels(self) -> torch.Tensor | None:
        """int64 [N], or None for an unlabelled set."""
        return None if self.dataset.labels is None else torch.from_numpy(self.dataset.labels)

    def shards(self) -> Iterator[torch.Tensor]:
        """The samples of one shard after another; each shard is read whole."""
        for number in range(len(self.dataset.shard_counts)):
            yield torch.from_numpy(self.dataset.shard(number)[0])

    def batches(self, *, seed: int, seen: int, until: int, batch: int, rank: int = 0, size: int = 1) -> Iterator[Batch]:
        """The batches of one rank from `seen` to `until` samples; the last batch may extend past `until`.

        Raises UserError, naming the shard, when a shard is damaged or changed, and RuntimeError when a worker dies.
        """
        mine = rank_batch(batch, size)
        order = Grouped(self.dataset.shard_counts, seed, self.buffer)
        firsts = range(seen + rank * mine, until + rank * mine, batch)
        source = _Batches(Reader(self.dataset, self.buffer), order, firsts, mine)
        for item in _prefetched(source, self.workers) if self.workers else (source[i] for i in range(len(source))):
            if isinstance(item, UserError):
                raise item
            found, damaged = item
            if damaged and not self.skip_damaged:
                raise UserError(next(iter(damaged.values())))
            yield self._mended(found, damaged) if damaged else found

    def _mended(self, batch: Batch, damaged: dict[int, str]) -> Batch:
        good = [i for i in range(len(batch.ids)) if i not in damaged]
        if not good:
            raise UserError(f"{next(iter(damaged.values()))} (and every other sample of its batch)")
        self.damaged += damaged.values()
        rows = np.arange(len(batch.ids))
        rows[list(damaged)] = np.resize(good, len(damaged))
        return replace(
            batch,
            samples=batch.samples[rows],
            labels=None if batch.labels is None else batch.labels[rows],
            ids=batch.ids[rows],
        )


class _Batches(MapDataset[Any]):
    """Batch number -> Batch, in the process that asks for it. A UserError is returned: torch would add a trace."""

    def __init__(self, reader: Reader, order: Grouped, firsts: range, size: int) -> None:
        self.reader, self.order, self.firsts, self.size = reader, order, firsts, size

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, number: int) -> tuple[Batch, dict[int, str]] | UserError:
        first = self.firsts[number]
        ids = self.order.rows(first, first + self.size)
        try:
            samples, labels, damaged = self.reader.read(ids)
        except UserError as error:
            return error
        found = Batch(torch.from_numpy(samples), None if labels is None else torch.from_numpy(labels), ids, first)
        return found, damaged


def _prefetched(source: _Batches, workers: int) -> Iterator[tuple[Batch, dict[int, str]] | UserError]:
    loaded = DataLoader(
        source,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        generator=torch.Generator(),  # by default it draws from the global generator, which other code relies on
    )
    try:
        yield from loaded
    except (EOFError, ConnectionError, RuntimeError) as error:
        # torch raises RuntimeError for a dead worker. The other two arise when the data that it sent become unreadable.
        raise RuntimeError(f"a worker that reads training data died (killed, or out of memory): {error}") from error
