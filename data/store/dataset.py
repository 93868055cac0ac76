"""A sealed set of shards as arrays.

    Dataset(folder)  ->  samples, labels, provenance

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.store import manifest
from entroloop.data.store.manifest import FileEntry
from entroloop.data.store.shards import Provenance, Samples, parse_shard, read_file


class Dataset:
    """A sealed set of shards. Opening it reads only the manifest.

    Raises UserError, naming the folder, when the folder is not a sealed set of images or vectors.
    """

    kinds: tuple[str, ...] = ("images", "vectors")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifest.read(folder)
        if self.manifest.kind not in self.kinds:
            raise UserError(f"{folder}: holds {self.manifest.kind}, not a set of images or vectors")

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""
        return tuple(self.manifest.about["shape"])

    @property
    def labelled(self) -> bool:
        return bool(self.manifest.about["labelled"])

    def path(self, name: str) -> Path:
        """The local path of a file of the set."""
        return self.folder / name

    @property
    def sets(self) -> Sequence[Dataset]:
        """The sets whose shards hold the samples: this set alone. `Indexed` has others."""
        return (self,)

    def origins(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the samples are stored: int64 [n, 2], the number of the set in `sets` and the row in that set."""
        return np.stack([np.zeros_like(rows), rows], axis=1)

    @property
    def shard_names(self) -> list[str]:
        return [shard["name"] for shard in self.manifest.about["shards"]]

    @property
    def shard_counts(self) -> list[int]:
        return [shard["count"] for shard in self.manifest.about["shards"]]

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first sample of each shard, then the total: int64 [shards + 1]."""
        return np.concatenate([[0], np.cumsum(self.shard_counts)]).astype(np.int64)

    def shard(self, number: int) -> tuple[Samples, NDArray[np.int64] | None]:
        """The samples and labels of one shard. Raises UserError when the shard is damaged or differs from its seal."""
        name = self.shard_names[number]
        path = self.path(name)
        raw = read_file(path)
        samples, labels = parse_shard(raw, str(path))
        if len(samples) != self.shard_counts[number]:
            raise UserError(f"{path}: holds {len(samples)} samples instead of the sealed {self.shard_counts[number]}")
        self._check(path, name, raw)
        return samples, labels

    def _check(self, path: Path, name: str, raw: bytes) -> None:
        if hashlib.sha256(raw).hexdigest() != self._sealed[name].sha256:
            raise UserError(f"{path}: content changed since it was sealed (SHA-256 differs)")

    def all(self) -> Samples:
        """Every sample, in order: uint8 [N, C, H, W] or float32 [N, D]."""
        return np.concatenate([self.shard(i)[0] for i in range(len(self.shard_names))])

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """The samples with the given numbers, in the given order. Reads each shard at most once."""
        out = np.empty((len(rows), *self.shape), dtype=self.manifest.about["dtype"])
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owners).tolist():
            here = owners == number
            out[here] = self.shard(number)[0][rows[here] - self.starts[number]]
        return out

    @functools.cached_property
    def _columns(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for name in self.shard_names:
            side = self.side(name)
            for key in ("generation", "index", "source", *(["label"] if self.labelled else [])):
                columns.setdefault(key, []).extend(side["columns"][key])
        return columns

    def side(self, shard: str) -> dict[str, Any]:
        """The contents of the `.json` beside a shard. Raises UserError when the file differs from its seal."""
        name = str(PurePosixPath(shard).with_suffix(".json"))
        path = self.path(name)
        raw = read_file(path)
        self._check(path, name, raw)
        side: dict[str, Any] = json.loads(raw)
        return side

    @functools.cached_property
    def _sealed(self) -> dict[str, FileEntry]:
        return {entry.name: entry for entry in self.manifest.files}

    @functools.cached_property
    def provenance(self) -> Provenance:
        columns = self._columns
        return Provenance(np.array(columns["generation"]), np.array(columns["index"]), tuple(columns["source"]))

    @functools.cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """int64 [N], or None for an unlabelled set."""
        return np.array(self._columns["label"], dtype=np.int64) if self.labelled else None

    @property
    def num_classes(self) -> int:
        """One more than the largest label; 0 for an unlabelled set."""
        return int(self.manifest.about.get("num_classes", 0 if self.labels is None else self.labels.max() + 1))
