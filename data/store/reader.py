"""Single samples of a sealed set, read from their positions in the shards and checked against the sealed CRC-32.

    Dataset  ->  Reader.read(rows)  ->  samples, labels, damaged

n rows asked for.
"""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError, reason
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import decode

BUFFER = 16  # default number of shards whose samples are asked for together
FILES = 256  # largest number of shards that a reader of an index keeps open, unless `buffer` asks for more


class Reader:
    """Reads and checks single samples of a set. Keeps the files and columns of a few shards open.

    buffer  number of shards whose samples are asked for together

    The samples of one file of an index may be in several shards of other sets. The reader then keeps more files open.
    """

    def __init__(self, dataset: Dataset, buffer: int = BUFFER) -> None:
        self.dataset, self.buffer = dataset, buffer
        behind = sum(len(one.shard_names) for one in dataset.sets)
        each = -(-behind // len(dataset.shard_names))
        files = max(2 * buffer, min(2 * buffer * each, FILES))
        self._shard = functools.lru_cache(maxsize=files)(lambda number, shard: _OpenShard(dataset.sets[number], shard))

    def __reduce__(self) -> tuple[Any, ...]:  # open files stay in the process that opened them
        return Reader, (self.dataset, self.buffer)

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64] | None, dict[int, str]]:
        """Samples and labels of the given rows, in the given order, and the damage by position in `ids`.

        ids  int64 [n]
        ->   samples uint8 [n, C, H, W] or float32 [n, D]; labels int64 [n] or None; one line per damaged position

        The values of a damaged sample are undefined. Raises UserError when a shard cannot be opened.
        """
        samples = np.empty((len(ids), *self.dataset.shape), dtype=self.dataset.manifest.about["dtype"])
        labels = np.empty(len(ids), np.int64) if self.dataset.labelled else None
        damaged: dict[int, str] = {}
        numbers, rows = self.dataset.origins(ids).T
        owners, firsts = np.empty_like(rows), np.empty_like(rows)
        for number in np.unique(numbers):
            here, starts = numbers == number, self.dataset.sets[number].starts
            owners[here] = np.searchsorted(starts, rows[here], side="right") - 1
            firsts[here] = starts[owners[here]]
        for i in np.lexsort((rows, numbers)):  # one shard after another, in each from its beginning to its end
            shard, row = self._shard(int(numbers[i]), int(owners[i])), int(rows[i] - firsts[i])
            try:
                samples[i] = shard.sample(row)
            except (ValueError, OSError, SyntaxError, zlib.error) as error:
                damaged[int(i)] = f"{shard.path}: damaged shard, at sample {int(rows[i]):09d}: {error}"
            if labels is not None:
                labels[i] = shard.labels[row]
        return samples, labels, damaged


class _OpenShard:
    def __init__(self, dataset: Dataset, number: int) -> None:
        name = dataset.shard_names[number]
        columns = dataset.side(name)["columns"]
        self.offset, self.size = (np.array(columns[key], np.int64) for key in ("offset", "size"))
        self.crc32 = np.array(columns["crc32"], np.uint32)
        self.labels = np.array(columns.get("label", ()), np.int64)
        self.path, self._file = open_file(dataset, name)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_WILLNEED)  # one long read is cheaper than many short ones

    def sample(self, row: int) -> NDArray[Any]:
        payload = os.pread(self._file, int(self.size[row]), int(self.offset[row]))
        if zlib.crc32(payload) != self.crc32[row]:
            raise ValueError("content changed since it was sealed (CRC-32 differs)")
        return decode("x.npy" if payload[:6] == b"\x93NUMPY" else "x.png", payload)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def open_file(dataset: Dataset, name: str) -> tuple[Path, int]:
    """The path of a shard and an open descriptor. Raises UserError, naming the path, when it cannot be opened."""
    for last in (False, False, True):
        path = dataset.path(name)
        try:
            return path, os.open(path, os.O_RDONLY)
        except OSError as error:
            # Another process may just have removed the file from the cache of a remote set; `path` then fetches it
            # again.
            if last or not isinstance(error, FileNotFoundError):
                raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    raise AssertionError
