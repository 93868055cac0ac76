"""Import: a user's images or vectors -> sealed shards that have the same bytes on every machine.

    SOURCE  ->  open_source  ->  chosen rows  ->  one task per shard (parallel, or `--part i::n`)  ->  DEST sealed

The import first writes its settings and a fingerprint of the source's names and labels to `import.json`. A second
import into the same folder then either continues the same work, or is refused with a message that tells the difference.
The shards do not depend on the path of the source, the time or the machine.

N samples of the source, C channels, H height, W width, D features.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import Interrupted, UserError, reason
from entroloop.data.progress import Progress
from entroloop.data.seeds import Part, bounds
from entroloop.data.sources.base import LABELS, MISSING, ImageSource, Source
from entroloop.data.sources.convert import ShardTask, make_shards
from entroloop.data.sources.listing import HIDDEN
from entroloop.data.sources.pca import AXES, components_of, projected
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.settings import Settings, choose_rows, default_shard_size, find_form, num_classes
from entroloop.data.store import manifest
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.shards import is_done, seal_dataset, shard_name

SETTINGS = "import.json"


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
    opened = _open(source, settings)
    rows = choose_rows(opened, settings)
    identity = _identity(opened, settings, rows)
    _check_dest(dest, source, identity)
    if manifest.is_sealed(dest):
        return opened.ignored
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    fitted = settings.fitted
    whole = find_form(opened, np.sort(np.r_[rows, fitted].astype(np.int64)), settings, workers, progress=progress)
    form = whole if settings.pca is None else components_of(whole, fitted, settings.pca)
    pieces = bounds(0, len(rows), settings.shard_size or default_shard_size(form))
    facts = {**identity, "shards": len(pieces), "num_classes": num_classes(opened), "classes": list(opened.classes)}
    text = files.json_bytes(facts)
    made = not manifest.is_sealed(dest) and files.create(dest / SETTINGS, lambda file: file.write(text))
    if not made:
        _check_dest(dest, source, identity)
    if manifest.is_sealed(dest):  # by another process, while this one looked at the source
        return opened.ignored
    files.sweep_temporaries(dest)
    done = {i for i in part.of(len(pieces)) if is_done(dest, i)}
    tasks = [ShardTask(i, pieces[i][0], rows[slice(*pieces[i])]) for i in part.of(len(pieces)) if i not in done]
    sizes = {i: stop - start for i, (start, stop) in enumerate(pieces) if i in part.of(len(pieces))}
    if not isinstance(opened, ImageSource) or len(tasks) == 1:
        workers = 1
    if settings.pca is not None:
        opened = projected(opened, whole, fitted, settings.pca, dest)
    unit = "img" if len(form.shape) == 3 else "row"
    with Progress("import", sum(sizes.values()), unit, done=sum(sizes[i] for i in done), show=progress) as bar:
        for task in make_shards(opened, dest, form, tasks, workers):
            bar.advance(sizes[task.number])
            if stop():
                raise Interrupted(f"{dest}: stopped; run the same command again to continue")
    return opened.ignored


def seal_import(dest: Path) -> Manifest:
    """Seals an import whose parts are all complete. Raises UserError, naming the first missing shard, when one is."""
    facts = None if manifest.is_sealed(dest) else _read_settings(dest)
    if manifest.is_sealed(dest):  # also by another process, just now
        _forget_settings(dest)
        return manifest.read(dest)
    if facts is None:
        raise UserError(f"{dest}: not an import that was begun (no {SETTINGS})")
    missing = next((i for i in range(facts["shards"]) if not is_done(dest, i)), None)
    if missing is not None:
        raise UserError(f"{dest}: {shard_name(missing)} is missing or unfinished: make it before sealing")
    about: dict[str, Any] = {"import": {key: facts[key] for key in IDENTITY}}
    if facts["num_classes"]:
        about["num_classes"] = facts["num_classes"]
    if facts["classes"]:
        about["classes"] = facts["classes"]
    axes = [AXES] if facts["settings"].get("pca") else []
    sealed = seal_dataset(dest, about=about, made_from={"source": facts["source"]}, more=axes)
    _forget_settings(dest)
    return sealed


def _open(source: str, settings: Settings) -> Source:
    own_split = settings.heldout and settings.split in (None, "train", "test")
    opened = open_source(source, None if own_split else settings.split, key=settings.key, labels=settings.labels)
    if not len(opened.names):
        raise UserError(f"{source}: holds no samples")
    if settings.labels and opened.labels is not None and (opened.labels == MISSING).any():
        without = np.flatnonzero(opened.labels == MISSING)
        raise UserError(
            f"{source}: {len(without)} of {len(opened.names)} samples have no label, first {opened.names[without[0]]}: "
            "label them or give --no-labels"
        )
    if settings.labels and opened.labels is not None:
        end = len(opened.classes) or LABELS
        wrong = np.flatnonzero((opened.labels < 0) | (opened.labels >= end))
        if len(wrong):
            one = f"{opened.names[wrong[0]]} has the label {opened.labels[wrong[0]]}"
            raise UserError(f"{source}: {one}: labels go from 0 to {end - 1}")
    return opened


IDENTITY = ("kind", "settings", "source_count", "source", "count", "ignored")


def _identity(source: Source, settings: Settings, rows: NDArray[np.int64]) -> dict[str, Any]:
    """The facts that two imports into one folder must have in common."""
    labels = None if source.labels is None else source.labels.tolist()
    return {
        "kind": source.kind,
        "settings": dataclasses.asdict(settings),
        "source_count": len(source.names),
        "source": files.digest({"names": list(source.names), "labels": labels, "classes": list(source.classes)}),
        "count": len(rows),
        "ignored": Counter(reason for reason in source.ignored.values() if reason != HIDDEN),
    }


def _check_dest(dest: Path, source: str, identity: dict[str, Any]) -> None:
    """Raises UserError unless `dest` is missing, empty, or holds the same import, finished or not."""
    if dest.exists() and not dest.is_dir():
        raise UserError(f"{dest}: is a file: give a folder to import into")
    origin = Path(source).expanduser()
    if origin.is_dir() and dest.resolve().is_relative_to(origin.resolve()):
        raise UserError(f"{dest}: lies inside the source {source}: give a folder outside it")
    there = None if manifest.is_sealed(dest) else _read_settings(dest)
    if manifest.is_sealed(dest):  # also by another process, just now
        there = manifest.read(dest).about.get("import")
        if there is None:
            raise UserError(f"{dest}: already holds a sealed set that was not imported: give another folder")
    elif there is None:
        if dest.is_dir() and any(not entry.name.startswith(files.TEMPORARY) for entry in dest.iterdir()):
            if (dest / SETTINGS).exists() or manifest.is_sealed(dest):  # another import has begun just now
                return _check_dest(dest, source, identity)
            raise UserError(f"{dest}: already holds other files: give a new or empty folder")
        return None
    if difference := _difference(there, identity):
        raise UserError(f"{dest}: holds an import made otherwise ({difference}): give another folder")
    return None


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    pairs = [(name, there["settings"].get(name), value) for name, value in here["settings"].items()] + [
        (name.replace("_", " "), there.get(name), here[name]) for name in IDENTITY if name not in ("settings", "source")
    ]
    found = [f"{name} {before!r} there, {now!r} now" for name, before, now in pairs if before != now]
    if not found and there.get("source") != here["source"]:
        found = ["the source's names or labels changed"]
    return "; ".join(found)


def _read_settings(dest: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads((dest / SETTINGS).read_text(encoding="utf-8"))
        return facts
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{dest / SETTINGS}: damaged ({reason(error)}): remove the folder and import again") from error


def _forget_settings(dest: Path) -> None:
    """Removes `import.json`, which only an unfinished import needs.

    Does not touch the disk if the file is already gone, because a finished import may be on a read-only disk.
    """
    if (dest / SETTINGS).exists():
        (dest / SETTINGS).unlink(missing_ok=True)
