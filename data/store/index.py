"""Training sets that name samples of other sealed sets of their run instead of holding copies.

    sets + rows  ->  write_index  ->  index-000000.json … + manifest.json  ->  open_set  ->  Indexed, used as a Dataset

An index file has as many samples as a shard would have. So the training batches are in the same order as if the set
were written as shards. Each file holds the same columns of provenance and labels as the `.json` beside a shard. Instead
of the samples' bytes it holds the columns

    set  number of a set in the manifest's `about.sets`: a folder relative to the run, and the digest of its manifest
    row  the sample's row in that set

The index names a real data set outside the run by the word `data.source`. The run's configuration has the path of that
set, so no sealed file holds a path that differs between machines.

N samples, n rows asked for.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data import yaml12
from entroloop.data.errors import UserError
from entroloop.data.paths import expanded
from entroloop.data.seeds import bounds
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.reader import Reader
from entroloop.data.store.shards import Provenance, Samples

KIND = "index"
OUTSIDE = "data.source"  # names the real data set if it is outside the run


def open_set(folder: Path) -> Dataset:
    """Opens a sealed folder of shards, or an index of samples. Raises UserError when the folder is neither."""
    return Indexed(folder) if manifest.read(folder).kind == KIND else Dataset(folder)


def write_index(
    folder: Path,
    sets: Sequence[Dataset],
    origins: NDArray[np.int64],
    provenance: Provenance,
    labels: NDArray[np.int64] | None,
    *,
    run: Path,
    shard_size: int,
    about: Mapping[str, Any],
    made_from: Mapping[str, str],
) -> Manifest:
    """Seals an index of the samples `origins`, int64 [N, 2] (number of a set, row in that set), in this order.

    folder  two levels below `run`; sets inside the run are named by their path relative to `run`
    labels  int64 [N], or None

    Raises UserError when the disk is full.
    """
    assert folder.parent.parent == run
    shards = []
    for number, (start, stop) in enumerate(bounds(0, len(origins), shard_size)):
        part, name = provenance.take(slice(start, stop)), f"index-{number:06d}.json"
        columns: dict[str, list[Any]] = {
            "set": origins[start:stop, 0].tolist(),
            "row": origins[start:stop, 1].tolist(),
            "generation": part.generation.tolist(),
            "index": part.index.tolist(),
            "source": list(part.source),
        }
        if labels is not None:
            columns["label"] = labels[start:stop].tolist()
        text = json.dumps({"count": stop - start, "columns": columns}, sort_keys=True).encode() + b"\n"
        manifest.put(folder, name, text)
        shards.append({"name": name, "count": stop - start})
    named = [one.folder.relative_to(run).as_posix() if one.folder.is_relative_to(run) else OUTSIDE for one in sets]
    facts = {
        "shape": list(sets[0].shape),
        "dtype": sets[0].manifest.about["dtype"],
        "labelled": labels is not None,
        "shards": shards,
        "sets": [{"name": name, "digest": one.manifest.digest} for name, one in zip(named, sets, strict=True)],
    }
    names = [str(shard["name"]) for shard in shards]
    return manifest.seal(folder, KIND, len(origins), names, about={**facts, **about}, made_from=made_from)


class Indexed(Dataset):
    """A sealed index, read as if its samples were in shards of its own. Each index file counts as one shard.

    Opens the sets that it names when samples are first read. Raises UserError, naming the set, when such a set is
    missing or its manifest has changed since the index was made.
    """

    kinds = (KIND,)

    @functools.cached_property
    def sets(self) -> Sequence[Dataset]:
        return [self._open(entry["name"], entry["digest"]) for entry in self.manifest.about["sets"]]

    def _open(self, name: str, digest: str) -> Dataset:
        run = _run_of(self.folder)
        try:
            found = Dataset(_configured_source(run) if name == OUTSIDE else run / name)
        except UserError as error:
            raise UserError(f"{error} (the index {self.folder} refers to it)") from error
        if found.manifest.digest != digest:
            raise UserError(f"{found.folder}: changed since the index {self.folder} was made from it")
        return found

    @functools.cached_property
    def _origins(self) -> NDArray[np.int64]:
        columns = (self.side(name)["columns"] for name in self.shard_names)
        return np.concatenate([np.array([part["set"], part["row"]], np.int64).T for part in columns])

    def origins(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._origins[rows]
        return found

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """The samples with the given numbers, in the given order. Raises UserError when a sample is damaged."""
        samples, _, damaged = Reader(self).read(rows)
        if damaged:
            raise UserError(next(iter(damaged.values())))
        return samples

    def shard(self, number: int) -> tuple[Samples, NDArray[np.int64] | None]:
        here = np.arange(self.starts[number], self.starts[number + 1])
        return self.take(here), None if self.labels is None else self.labels[here]

    def all(self) -> Samples:
        return self.take(np.arange(len(self)))


def _run_of(folder: Path) -> Path:
    """The folder two levels up, also for relative paths such as `.` and `selected`."""
    plain = len(folder.parts) > 1 and ".." not in folder.parts[-2:]
    return (folder if plain else Path(os.path.abspath(folder))).parent.parent


def _configured_source(run: Path) -> Path:
    path = run / "config.yaml"
    try:
        return Path(expanded(yaml12.read(path.read_text(), str(path))["data"]["source"]))
    except (OSError, TypeError, KeyError) as error:
        raise UserError(f"{path}: does not name the real data set as {OUTSIDE}") from error


def problems(folder: Path) -> list[str]:
    """One line per reason why a sealed index cannot be read: a set is missing or has changed, a shard was removed."""
    one = Indexed(folder)
    try:
        sets = one.sets
    except UserError as error:
        return [str(error)]
    found = []
    origins = one.origins(np.arange(len(one)))
    for number, behind in enumerate(sets):
        rows = origins[origins[:, 0] == number, 1]
        for shard in np.unique(np.searchsorted(behind.starts, rows, side="right") - 1):
            path = behind.folder / behind.shard_names[shard]
            if not path.is_file():
                found.append(f"{path}: missing (the index {folder} refers to it)")
    return found
