"""Chosen ids -> the next generation's training set, with the provenance of every image.

    sources (Dataset, rows)  +  ids into their concatenation  ->  sealed shards, or a sealed index

Each image keeps the provenance that its source records, so an image of generation 0 is still marked as such after ten
generations. N chosen images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.seeds import bounds
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import write_index
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.shards import REAL, Provenance, Samples, seal_dataset, write_shard


@dataclass(frozen=True)
class Candidates:
    """Candidates from one sealed set: its rows, int64 [n], and their provenance.

    real  the set is the run's real data. Its samples then count as real images, identified by their rows, whatever
          provenance the set records
    """

    dataset: Dataset
    rows: NDArray[np.int64]
    real: bool = False

    @property
    def provenance(self) -> Provenance:
        own = self.dataset.provenance.take(self.rows)
        return Provenance(np.full(len(own), REAL), self.rows, own.source) if self.real else own

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.dataset.labels is None else self.dataset.labels[self.rows]

    @staticmethod
    def whole(dataset: Dataset) -> Candidates:
        return Candidates(dataset, np.arange(len(dataset), dtype=np.int64))


def take(sources: Sequence[Candidates], ids: NDArray[np.int64]) -> Samples:
    """The samples of the candidates `ids`, int64 [N], in that order: [N, ...]."""
    edges = np.concatenate([[0], np.cumsum([len(s.rows) for s in sources])])
    owner = np.searchsorted(edges, ids, side="right") - 1
    first = sources[0].dataset
    out: Samples = np.empty((len(ids), *first.shape), dtype=first.manifest.about["dtype"])
    for number in np.unique(owner):
        here = np.flatnonzero(owner == number)
        out[here] = sources[number].dataset.take(sources[number].rows[ids[here] - edges[number]])
    return out


def write_selected(
    sources: Sequence[Candidates],
    ids: NDArray[np.int64],
    folder: Path,
    *,
    shard_size: int,
    about: Mapping[str, Any],
    made_from: Mapping[str, str],
) -> Manifest:
    """Writes the chosen candidates, in ascending order of id, as a sealed training set.

    Labels are kept if every source has labels. Raises UserError when the disk is full.
    """
    ids = np.sort(ids)
    provenance, labels = _columns(sources, ids)
    for number, (start, stop) in enumerate(bounds(0, len(ids), shard_size)):
        some = None if labels is None else labels[start:stop]
        write_shard(
            folder, number, take(sources, ids[start:stop]), some, provenance.take(slice(start, stop)), first_key=start
        )
    return seal_dataset(folder, about=about, made_from=made_from)


def write_as_shards(dataset: Dataset, folder: Path) -> Manifest:
    """Copies an indexed set into shards of the same sizes, so that its training batches stay the same."""
    about = {"num_classes": dataset.num_classes} if dataset.labelled else {}
    source = Candidates.whole(dataset)
    return write_selected(
        [source], source.rows, folder, shard_size=dataset.shard_counts[0], about=about,
        made_from={"index": dataset.manifest.digest},
    )  # fmt: skip


def index_selected(
    sources: Sequence[Candidates],
    ids: NDArray[np.int64],
    folder: Path,
    *,
    run: Path,
    shard_size: int,
    about: Mapping[str, Any],
    made_from: Mapping[str, str],
) -> Manifest:
    """As `write_selected`, but writes an index and leaves the samples where they are (`entroloop.data.store.index`).

    If a source is itself an index, the new index refers to the sets that the source refers to.
    """
    ids = np.sort(ids)
    sets: list[Dataset] = []
    found = []
    for source in sources:
        own = [_number(one, sets) for one in source.dataset.sets]
        origins = source.dataset.origins(source.rows)
        found.append(np.stack([np.array(own)[origins[:, 0]], origins[:, 1]], axis=1))
    provenance, labels = _columns(sources, ids)
    return write_index(
        folder, sets, np.concatenate(found)[ids], provenance, labels, run=run, shard_size=shard_size, about=about,
        made_from=made_from,
    )  # fmt: skip


def _number(one: Dataset, sets: list[Dataset]) -> int:
    """The position of a set in `sets`; a new set is appended."""
    for number, known in enumerate(sets):
        if known.folder == one.folder:
            return number
    sets.append(one)
    return len(sets) - 1


def _columns(sources: Sequence[Candidates], ids: NDArray[np.int64]) -> tuple[Provenance, NDArray[np.int64] | None]:
    provenance = Provenance.concatenate([s.provenance for s in sources]).take(ids)
    each = [s.labels for s in sources]
    labels = None if any(x is None for x in each) else np.concatenate([x for x in each if x is not None])[ids]
    return provenance, labels
