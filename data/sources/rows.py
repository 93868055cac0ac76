"""Rows as they are stored, in one array or several: vectors, or images.

    row_files.open_rows  ->  Rows  ->  rows by number, blocks of rows, labels beside them, checks of their values

N rows, D numbers per vector, C channels, H height, W width.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.sources.npy import DAMAGED, Header, load
from entroloop.data.store import manifest

WHOLE = 2**24  # float32 holds every whole number up to this one
_BLOCK_BYTES = 1 << 26  # bytes per block when all values of a file are checked


@dataclass(frozen=True)
class Rows:
    """Rows as they are stored, memory-mapped if the file allows it.

    path    the file or sealed folder
    key     name of the array in an archive, or of the encoder; None for a `.npy` file
    parts   arrays [n, D] of numbers, or uint8 [n, C, H, W]; concatenated they are the N rows
    beside  headers of the other arrays in the archive, by name
    """

    path: Path
    key: str | None
    parts: Sequence[NDArray[Any]]
    beside: Mapping[str, Header] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, rows: int | slice | NDArray[np.int64]) -> NDArray[Any]:
        """One row, a slice or some ids, in the machine's byte order.

        A slice of a single part stays memory-mapped if no value needs converting. Integers other than uint8 become
        float32; `check` must have passed before.
        """
        if len(self.parts) == 1:
            return _native(self.parts[0][rows])
        ids = np.arange(len(self))[rows]
        out = np.empty((ids.size, *self.shape), self.parts[0].dtype)
        first = 0
        for part in self.parts:
            mine = (ids.reshape(-1) >= first) & (ids.reshape(-1) < first + len(part))
            out[mine] = part[ids.reshape(-1)[mine] - first]
            first += len(part)
        return _native(out.reshape(*ids.shape, *self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: (D,) or (C, H, W)."""
        return self.parts[0].shape[1:]

    @property
    def where(self) -> str:
        """The file and the name of the array in it, for messages."""
        return str(self.path) if self.key is None else f"{self.path}: {self.key}"

    @property
    def file(self) -> Path:
        """The file that changes when the rows change: the file itself, or a feature folder's manifest."""
        return self.path / manifest.MANIFEST if self.path.is_dir() else self.path

    def about(self) -> dict[str, Any]:
        """Facts to record: the file's name and SHA-256 (for a folder, its manifest's), key, shape and dtype."""
        return {
            "file": self.path.name,
            "key": self.key,
            "sha256": files.sha256(self.file),
            "shape": [len(self), *self.shape],
            "dtype": str(self.parts[0].dtype),
        }

    def problem(self, rows: slice = slice(None)) -> str | None:
        """One line on the first row of a slice that holds an unusable value; None if all values are usable.

        Unusable values are NaN, infinity, float64 beyond the range of float32, and integers beyond ±2^24, above which
        float32 does not hold every integer. Reads one block at a time.
        """
        if self.parts[0].dtype == np.uint8:
            return None
        limit = _limit(self.parts[0].dtype)
        for first, block in self.blocks(rows, _BLOCK_BYTES):
            if not (-limit <= block.min().item() and block.max().item() <= limit):
                bad = int(np.argmin(((block >= -limit) & (block <= limit)).all(1)))
                return f"{self.where}: row {first + bad} holds {_unusable(block[bad])}"
        return None

    def blocks(self, rows: slice = slice(None), size: int = _BLOCK_BYTES) -> Iterator[tuple[int, NDArray[Any]]]:
        """The rows of a slice as stored, about `size` bytes at a time, each block with the number of its first row."""
        start, stop, _ = rows.indices(len(self))
        first = 0
        for part in self.parts:
            step = max(1, size // max(1, part[:1].nbytes))
            for at in range(max(start - first, 0), min(stop - first, len(part)), step):
                yield first + at, part[at : min(at + step, stop - first)]
            first += len(part)

    def check(self) -> None:
        """Raises UserError, naming the first row that holds an unusable value, when there is one. See `problem`."""
        if message := self.problem():
            raise UserError(message)

    def vectors(self) -> Rows:
        """These rows. Raises UserError when they are images."""
        if len(self.shape) != 1:
            raise UserError(f"{self.where}: holds images, but vectors [N, D] are needed: encode the images first")
        return self

    def labels_key(self) -> str | None:
        """The name of the labels beside the rows: the array of N integers, [N] or [N, 1]; None if there is none.

        Raises UserError when several arrays could be the labels, and when the only one has another length.
        """
        shapes = {name: header.shape for name, header in self.beside.items() if header.dtype.kind in "iu"}
        fitting = [name for name, shape in shapes.items() if shape in ((len(self),), (len(self), 1))]
        if len(fitting) > 1:
            names = " and ".join(fitting)
            raise UserError(f"{self.path}: {names} could all be the labels: keep one, or give --no-labels")
        other = [name for name, shape in shapes.items() if len(shape) == 1]
        if not fitting and other and not any(header.holds_rows for header in self.beside.values()):
            name, count = other[0], shapes[other[0]][0]
            raise UserError(f"{self.path}: {name}: {count} labels for {len(self)} rows: fix them, or give --no-labels")
        return fitting[0] if fitting else None

    def labels(self, key: str) -> NDArray[np.int64]:
        """The labels in the array of this name: int64 [N]. Raises UserError when the array is damaged."""
        with reading(str(self.path), DAMAGED), zipfile.ZipFile(self.path) as archive:
            return load(self.path, archive, key, self.beside[key]).reshape(-1).astype(np.int64)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f" or array.dtype == np.uint8:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.astype(np.float32)


def _limit(dtype: np.dtype[Any]) -> float:
    return WHOLE if dtype.kind in "iu" else float(np.finfo(np.float32).max)


def fault(row: NDArray[Any]) -> str | None:
    """The values of one vector, [D], that float32 does not hold, in words; None if it holds all values."""
    limit = _limit(row.dtype)
    return None if -limit <= row.min().item() and row.max().item() <= limit else _unusable(row)


def _unusable(row: NDArray[Any]) -> str:
    if row.dtype.kind in "iu":
        return f"integers beyond {WHOLE:,}, which float32 does not hold exactly: scale them, or store float64"
    if not np.isfinite(row).all():
        return "NaN or infinity"
    return "numbers beyond the range of float32 (±3.4e38)"
