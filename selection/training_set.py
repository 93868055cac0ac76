"""Chosen ids -> the next generation's training set, with the provenance of every image.

    sources (Dataset, rows)  +  ids into their concatenation  ->  sealed shards, or a sealed index

Each image keeps the provenance that its source records, so an image of generation 0 is still marked as such after ten
generations. N chosen images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import Interrupted
from entroloop.data.seeds import Part, bounds
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import write_index
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.shards import REAL, Provenance, Samples, is_done, seal_dataset, write_shard


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

    Labels are kept if every source has labels. A shard that exists already is left as it is. Raises UserError when the
    disk is full.
    """
    write_shards(sources, ids, folder, shard_size, Part())
    return seal_dataset(folder, about=about, made_from=made_from)


def write_shards(
    sources: Sequence[Candidates],
    ids: NDArray[np.int64],
    folder: Path,
    shard_size: int,
    part: Part,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Writes the missing shards of a part of a training set, with the bytes of `write_selected`, which seals the set.

    Raises UserError when the disk is full, and Interrupted between shards when `should_stop` returns True.
    """
    ids = np.sort(ids)
    shards = bounds(0, len(ids), shard_size)
    for number in part.of(len(shards)):
        if is_done(folder, number):
            continue
        if should_stop():
            raise Interrupted(f"stopped before shard {number} of the training set; finished shards are kept")
        start, stop = shards[number]
        chosen = _chosen(sources, ids[start:stop])
        samples: Samples = np.concatenate([some.dataset.take(some.rows) for some in chosen if len(some.rows)])
        provenance, labels = _columns(chosen)
        write_shard(folder, number, samples, labels, provenance, first_key=start)


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
    provenance, labels = _columns(_chosen(sources, ids))
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


def _chosen(sources: Sequence[Candidates], ids: NDArray[np.int64]) -> list[Candidates]:
    """What each source has of the candidates `ids`, int64 [N], ascending. Some sources may have none of them."""
    edges = np.concatenate([[0], np.cumsum([len(source.rows) for source in sources])])
    cuts = np.searchsorted(ids, edges)
    return [
        replace(source, rows=source.rows[ids[start:stop] - first])
        for source, first, start, stop in zip(sources, edges[:-1], cuts[:-1], cuts[1:], strict=True)
    ]


def _columns(chosen: Sequence[Candidates]) -> tuple[Provenance, NDArray[np.int64] | None]:
    """Provenance and labels of all these candidates. Labels are None if a source has none."""
    labels = [some.labels for some in chosen]
    known = [x for x in labels if x is not None]
    return Provenance.concatenate([some.provenance for some in chosen]), (
        np.concatenate(known) if len(known) == len(labels) else None
    )
