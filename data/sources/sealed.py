"""A sealed set as the source of another set: at a smaller size, in part, or with other shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import reading
from entroloop.data.sources.given import Given
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import open_set


def recognise(given: Given) -> SealedSource | None:
    """A sealed set, as shards or as an index."""
    if not (given.is_folder and manifest.is_sealed(given.path)):
        return None
    given.no_splits()
    return SealedSource.of(open_set(given.path))


@dataclass
class SealedSource:
    """The samples of a sealed set as a `Source`. Keeps one shard in memory at a time."""

    dataset: Dataset
    kind: str
    where: str
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(dataset: Dataset) -> SealedSource:
        provenance = dataset.provenance
        names = tuple(
            source or f"generation {generation}/{index:09d}"
            for generation, index, source in zip(
                provenance.generation.tolist(), provenance.index.tolist(), provenance.source, strict=True
            )
        )
        classes = tuple(dataset.manifest.about.get("classes", ()))
        return SealedSource(
            dataset, f"sealed {dataset.manifest.kind}", str(dataset.folder), names, dataset.labels, classes
        )

    def read(self, rows: Iterable[int]) -> Iterator[NDArray[Any]]:
        number = -1
        for row in rows:
            owner = int(np.searchsorted(self.dataset.starts, row, side="right")) - 1
            if owner != number:
                number, samples = owner, self.dataset.shard(owner)[0]
            yield samples[row - self.dataset.starts[number]]

    def naming(self, row: int) -> AbstractContextManager[None]:
        return reading(f"{self.where}: {self.names[row]}")
