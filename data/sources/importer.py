"""Import: a user's images or vectors -> sealed shards that have the same bytes on every machine.

    SOURCE  ->  open_source  ->  chosen rows  ->  one task per shard (parallel, or `--part i::n`)  ->  DEST sealed

The import first writes its settings and a fingerprint of the source's names and labels to `import.json`. A second
import into the same folder then either continues the same work, or is refused with a message that tells the difference.
The shards do not depend on the path of the source, the time or the machine.

N samples of the source, C channels, H height, W width, D features.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.progress import Progress
from entroloop.data.seeds import Part, bounds
from entroloop.data.sources.base import ImageSource, Source
from entroloop.data.sources.begun import Begun, names_digest
from entroloop.data.sources.convert import SampleForm, ShardTask, make_shards
from entroloop.data.sources.listing import HIDDEN
from entroloop.data.sources.pca import AXES, Projected, components_of, projected
from entroloop.data.sources.recognise import open_samples
from entroloop.data.sources.settings import Settings, choose_rows, default_shard_size, find_form, num_classes
from entroloop.data.store import manifest
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.shards import is_done, seal_dataset


def import_dataset(
    source: str,
    dest: Path,
    settings: Settings = Settings(),  # noqa: B008 - immutable
    *,
    workers: int | None = 1,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Imports a source into `dest`, seals it and returns its manifest. Continues where an earlier attempt stopped.

    source   a name (`digits`, …), a file or a folder; the contents decide the kind
    workers  number of processes that decode images; None: one per core. A script that uses several needs the usual
             `if __name__ == "__main__"`
    stop     called after each shard; when it returns True, the import raises Interrupted and can be resumed

    A finished import with the same settings is not repeated.
    Raises UserError when the source is wrong, or when `dest` holds anything but the same import.
    """
    import_part(source, dest, settings, workers=workers, progress=progress, stop=stop)
    return seal_import(dest)


def import_part(
    source: str,
    dest: Path,
    settings: Settings,
    part: Part = Part(),  # noqa: B008 - immutable
    *,
    workers: int | None = 1,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Mapping[str, str]:
    """Makes the missing shards of one part. Call `seal_import` when all parts are complete.

    Returns name -> reason, for every entry of the source that is not imported.
    """
    begun = Begun(dest, "import")
    begun.check_place(source)
    with begun.or_nothing():
        opened = open_samples(source, settings, begun.shared(part))
        rows = choose_rows(opened, settings)
        identity = _identity(opened, settings, rows)
        begun.check(source, identity)
    if manifest.is_sealed(dest):
        return opened.ignored
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    fitted = settings.fitted
    whole = find_form(opened, np.sort(np.r_[rows, fitted].astype(np.int64)), settings, workers, progress=progress)
    form = whole if settings.pca is None else components_of(whole, fitted, settings.pca)
    pieces = bounds(0, len(rows), settings.shard_size or default_shard_size(form))
    more = {"shards": len(pieces), "num_classes": num_classes(opened), "classes": list(opened.classes)}
    if not begun.begin(source, identity, more):
        return opened.ignored
    if settings.pca is not None:
        opened = projected(opened, whole, fitted, settings.pca, dest)
    tasks = [ShardTask(i, start, rows[start:stop]) for i, (start, stop) in enumerate(pieces)]
    fill(opened, dest, form, tasks, part, workers=workers, title="import", progress=progress, stop=stop)
    return opened.ignored


def fill(
    source: Source,
    dest: Path,
    form: SampleForm,
    tasks: Sequence[ShardTask],
    part: Part,
    *,
    workers: int,
    title: str,
    progress: bool,
    stop: Callable[[], bool],
) -> None:
    """Makes the missing shards of one part of the tasks. Raises Interrupted after a shard when `stop` returns True."""
    mine = [tasks[i] for i in part.of(len(tasks))]
    missing = [task for task in mine if not is_done(dest, task.number)]
    samples = source.of if isinstance(source, Projected) else source
    if not isinstance(samples, ImageSource):  # nothing to decode
        workers = 1
    total, left = (sum(len(task.rows) for task in some) for some in (mine, missing))
    with Progress(title, total, form.unit, done=total - left, show=progress) as bar:
        for task in make_shards(source, dest, form, missing, workers):
            bar.advance(len(task.rows))
            if stop():
                raise Interrupted(f"{dest}: stopped; run the same command again to continue")


def seal_import(dest: Path) -> Manifest:
    """Seals an import whose parts are all complete. Raises UserError, naming the first missing shard, when one is."""
    begun = Begun(dest, "import")
    facts = None if manifest.is_sealed(dest) else begun.facts()
    if manifest.is_sealed(dest):  # also by another process, just now
        begun.clean_up()
        return manifest.read(dest)
    if facts is None:
        raise UserError(f"{dest}: not an import that was begun (no {begun.path.name})")
    about: dict[str, Any] = {"import": {key: facts[key] for key in IDENTITY}, **classes_of(facts)}
    axes = [AXES] if facts["settings"].get("pca") else []
    sealed = seal_dataset(dest, facts["shards"], about=about, made_from={"source": facts["source"]}, more=axes)
    begun.clean_up()
    return sealed


def classes_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The number of classes and their names, for a seal; without those that the source does not have."""
    return {key: facts[key] for key in ("num_classes", "classes") if facts[key]}


IDENTITY = ("kind", "settings", "source_count", "source", "count", "ignored")


def _identity(source: Source, settings: Settings, rows: NDArray[np.int64]) -> dict[str, Any]:
    """The facts that two imports into one folder must have in common."""
    return {
        "kind": source.kind,
        "settings": dataclasses.asdict(settings),
        "source_count": len(source.names),
        "source": names_digest(source),
        "count": len(rows),
        "ignored": Counter(reason for reason in source.ignored.values() if reason != HIDDEN),
    }
