"""Chosen ids -> the next generation's training shards, with the provenance of every image.

    sources (Dataset, rows)  +  ids into their concatenation  ->  sealed shards

A source's own provenance is carried over, so that an image of generation 0 is still known as one after ten generations.
N chosen, P candidates of all sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.manifest import Manifest
from entroloop.data.plan import bounds
from entroloop.data.shards import Dataset, Provenance, Samples, seal_dataset, write_shard


@dataclass(frozen=True)
class Source:
    """Candidates of one origin: rows of a sealed set, int64 [n], and the provenance they have or get."""

    dataset: Dataset
    rows: NDArray[np.int64]

    @property
    def provenance(self) -> Provenance:
        return self.dataset.provenance.take(self.rows)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.dataset.labels is None else self.dataset.labels[self.rows]

    @staticmethod
    def whole(dataset: Dataset) -> Source:
        return Source(dataset, np.arange(len(dataset), dtype=np.int64))


def take(sources: Sequence[Source], ids: NDArray[np.int64]) -> Samples:
    """The samples of the given candidates, in that order."""
    edges = np.concatenate([[0], np.cumsum([len(s.rows) for s in sources])])
    owner = np.searchsorted(edges, ids, side="right") - 1
    first = sources[0].dataset
    out: Samples = np.empty((len(ids), *first.shape), dtype=first.manifest.about["dtype"])
    for number in np.unique(owner):
        here = np.flatnonzero(owner == number)
        out[here] = sources[number].dataset.take(sources[number].rows[ids[here] - edges[number]])
    return out


def write_selected(
    sources: Sequence[Source],
    ids: NDArray[np.int64],
    folder: Path,
    *,
    shard_size: int,
    about: Mapping[str, Any],
    made_from: Mapping[str, str],
) -> Manifest:
    """Writes the chosen candidates, in ascending order of id, as a sealed training set.

    Labels are kept when every source has them. Raises UserError when the disk is full.
    """
    ids = np.sort(ids)
    provenance = Provenance.concatenate([s.provenance for s in sources]).take(ids)
    each = [s.labels for s in sources]
    labels = None if any(x is None for x in each) else np.concatenate([x for x in each if x is not None])[ids]
    for number, (start, stop) in enumerate(bounds(0, len(ids), shard_size)):
        some = None if labels is None else labels[start:stop]
        write_shard(
            folder, number, take(sources, ids[start:stop]), some, provenance.take(slice(start, stop)), first_key=start
        )
    return seal_dataset(folder, about=about, made_from=made_from)
