"""Import: somebody's images or vectors -> sealed shards that are the same bytes on every machine.

    SOURCE  ->  open_source  ->  chosen rows  ->  one job a shard (parallel, or `--part i::n`)  ->  DEST sealed

The settings, and a fingerprint of the source's names and labels, are written first (`import.json`), so that a second
import into the same folder either goes on with the same work or is refused with the difference. Names of files, sizes
and times of the source's machine are not part of it.

N samples of the source, C channels, H height, W width, D features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from entroloop.data import conversion, files, manifest
from entroloop.data.conversion import Job, Layout
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.images import Channels
from entroloop.data.manifest import Manifest
from entroloop.data.plan import Part, bounds, derive_seed, permutation
from entroloop.data.progress import Progress
from entroloop.data.recognise import open_source
from entroloop.data.shards import Encoding, seal_dataset, shard_name
from entroloop.data.sources import MISSING, ImageSource, Source

SETTINGS = "import.json"
COLORS: dict[str, Channels | None] = {"auto": None, "grey": 1, "rgb": 3}
SHARD_BYTES = 2**27  # decoded; large samples get fewer a shard, so that memory does not grow with their size


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of an import.

    resolution  pixels a side after centre-crop and resize; None keeps the size
    limit       how many samples; the first ones, or the first of each class in turn where the source is sorted by class
    split       one of the source's own splits
    heldout     where it has none: this many seeded rows become `test`, the others `train`
    color       `auto` is grey where every image is
    labels      False leaves them out
    encoding    of images in the shards
    shard_size  samples a shard; None is 1,000, fewer for large samples
    """

    resolution: int | None = None
    limit: int | None = None
    split: str | None = None
    heldout: int = 0
    split_seed: int = 0
    color: str = "auto"
    labels: bool = True
    encoding: str = "png"
    shard_size: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("color", COLORS), ("encoding", ("png", "npy"))):
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} {getattr(self, name)}: give {' or '.join(choices)}")
        for name in ("resolution", "limit", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if self.heldout < 0:
            raise UserError(f"--heldout {self.heldout}: must not be negative")


def import_dataset(
    source: str,
    dest: Path,
    *,
    resolution: int | None = None,
    limit: int | None = None,
    split: str | None = None,
    heldout: int = 0,
    split_seed: int = 0,
    color: str = "auto",
    labels: bool = True,
    encoding: str = "png",
    shard_size: int | None = None,
    workers: int | None = 1,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Imports a source into `dest`, seals it and returns its manifest; goes on where an earlier attempt stopped.

    source   a word (`digits`, …), a file or a folder; the kind is recognised from the content
    workers  processes that decode images; None is one a core. From a script, more than one needs the usual
             `if __name__ == "__main__"`
    stop     asked between shards; when true the import ends resumably with Interrupted

    The other arguments are those of `Settings`. A finished `dest` of the same settings is left alone.
    Raises UserError on anything wrong with the source, the settings, or a `dest` made otherwise.
    """
    settings = Settings(resolution, limit, split, heldout, split_seed, color, labels, encoding, shard_size)
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
) -> None:
    """Makes the shards of one part that are still missing; `seal_import` follows when all parts are done."""
    opened = _open(source, settings)
    rows = choose_rows(opened, settings)
    identity = _identity(opened, settings, rows)
    _check_dest(dest, source, identity)
    if manifest.is_sealed(dest):
        return
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    layout = find_layout(opened, rows, settings, workers, progress=progress)
    pieces = bounds(0, len(rows), settings.shard_size or _shard_size(layout))
    facts = {**identity, "shards": len(pieces), "num_classes": _num_classes(opened), "classes": list(opened.classes)}
    text = files.json_bytes(facts)
    try:
        made = files.create(dest / SETTINGS, lambda file: file.write(text))
    except OSError as error:
        raise UserError(f"{dest}: cannot be written ({error.strerror})") from error
    if not made:
        _check_dest(dest, source, identity)
    _sweep_old(dest)
    done = {i for i in part.of(len(pieces)) if conversion.is_done(dest, i)}
    jobs = [Job(i, pieces[i][0], rows[slice(*pieces[i])]) for i in part.of(len(pieces)) if i not in done]
    sizes = {i: stop - start for i, (start, stop) in enumerate(pieces) if i in part.of(len(pieces))}
    if not isinstance(opened, ImageSource) or len(jobs) == 1:
        workers = 1
    unit = "img" if len(layout.shape) == 3 else "row"
    with Progress("import", sum(sizes.values()), unit, done=sum(sizes[i] for i in done), show=progress) as bar:
        for job in conversion.make_shards(opened, dest, layout, jobs, workers):
            bar.advance(sizes[job.number])
            if stop():
                raise Interrupted(f"{dest}: stopped; the same command goes on")


def seal_import(dest: Path) -> Manifest:
    """Seals an import whose parts are all done. Raises UserError naming the first shard that is missing."""
    facts = None if manifest.is_sealed(dest) else _read_settings(dest)
    if manifest.is_sealed(dest):  # also by another process, just now
        (dest / SETTINGS).unlink(missing_ok=True)
        return manifest.read(dest)
    if facts is None:
        raise UserError(f"{dest}: not an import that was begun (no {SETTINGS})")
    missing = next((i for i in range(facts["shards"]) if not conversion.is_done(dest, i)), None)
    if missing is not None:
        raise UserError(f"{dest}: {shard_name(missing)} is missing or unfinished: make it before sealing")
    about: dict[str, Any] = {"import": {key: facts[key] for key in IDENTITY}}
    if facts["num_classes"]:
        about["num_classes"] = facts["num_classes"]
    if facts["classes"]:
        about["classes"] = facts["classes"]
    sealed = seal_dataset(dest, about=about, made_from={"source": facts["source"]})
    (dest / SETTINGS).unlink(missing_ok=True)
    return sealed


def choose_rows(source: Source, settings: Settings) -> NDArray[np.int64]:
    """The rows of the source to import, sorted: int64 [N]. Raises UserError when more are asked for than there are."""
    rows = np.arange(len(source.names))
    if settings.heldout:
        if settings.heldout >= len(rows):
            raise UserError(f"--heldout {settings.heldout}: the source has {len(rows)} samples, give fewer")
        order = permutation(derive_seed(settings.split_seed, 0, "import split"), len(rows))
        chosen = order[: settings.heldout] if settings.split == "test" else order[settings.heldout :]
        rows = np.sort(chosen)
    if settings.limit is None or settings.limit == len(rows):
        return rows
    if settings.limit > len(rows):
        raise UserError(f"--limit {settings.limit}: the source has {len(rows)} samples, give at most that")
    labels = source.labels[rows] if settings.labels and source.labels is not None else None
    if labels is None or labels.min() == labels.max() or (np.diff(labels) < 0).any():
        return rows[: settings.limit]
    turn = np.arange(len(rows)) - np.searchsorted(labels, labels)  # how many of its class come before
    return np.sort(rows[np.lexsort((labels, turn))[: settings.limit]])


def find_layout(
    source: Source, rows: NDArray[np.int64], settings: Settings, workers: int, *, progress: bool = False
) -> Layout:
    """The shape all samples get. Raises UserError for samples of different sizes that are not resized."""
    labelled = settings.labels and source.labels is not None
    color: Channels | None = COLORS[settings.color]
    if not isinstance(source, ImageSource):
        first = next(iter(source.read(rows[:1])))
        if first.ndim == 1:
            if settings.resolution is not None:
                raise UserError(f"--resolution {settings.resolution}: the source holds vectors, which have none")
            conversion.check_vectors(source, rows)
            return Layout(first.shape, "npy", labelled)
        channels, size = color or len(first), (first.shape[2], first.shape[1])
    elif color is not None and settings.resolution is not None:
        channels, size = color, (0, 0)
    else:
        found = conversion.scan_all(source, rows, workers, progress=progress)
        channels, size = color or found.channels, found.size
        if found.odd is not None and settings.resolution is None:
            name, other = found.odd
            raise UserError(
                f"{source.where}: images differ in size ({found.name} is {size[0]} x {size[1]}, "
                f"{name} is {other[0]} x {other[1]}): give --resolution"
            )
    side = settings.resolution
    return Layout(
        (channels, size[1], size[0]) if side is None else (channels, side, side),
        cast("Encoding", settings.encoding),
        labelled,
    )


def _open(source: str, settings: Settings) -> Source:
    own_split = settings.heldout and settings.split in (None, "train", "test")
    opened = open_source(source, None if own_split else settings.split)
    if not len(opened.names):
        raise UserError(f"{source}: holds no samples")
    if settings.labels and opened.labels is not None and (opened.labels == MISSING).any():
        without = np.flatnonzero(opened.labels == MISSING)
        raise UserError(
            f"{source}: {len(without)} of {len(opened.names)} samples have no label, first {opened.names[without[0]]}: "
            "label them or give --no-labels"
        )
    return opened


IDENTITY = ("kind", "settings", "source_count", "source", "count", "ignored_files")


def _identity(source: Source, settings: Settings, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What two imports must have in common to work on one folder."""
    labels = None if source.labels is None else source.labels.tolist()
    return {
        "kind": source.kind,
        "settings": dataclasses.asdict(settings),
        "source_count": len(source.names),
        "source": files.digest({"names": list(source.names), "labels": labels, "classes": list(source.classes)}),
        "count": len(rows),
        "ignored_files": len(source.ignored),
    }


def _check_dest(dest: Path, source: str, identity: dict[str, Any]) -> None:
    """Raises UserError unless `dest` is free, or holds the same import, finished or not."""
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
            raise UserError(f"{dest}: already holds other files: give a new or empty folder")
        return
    if difference := _difference(there, identity):
        raise UserError(f"{dest}: holds an import made otherwise ({difference}): give another folder")


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
        raise UserError(f"{dest / SETTINGS}: damaged ({error}): remove the folder and import again") from error


def _num_classes(source: Source) -> int:
    return 0 if source.labels is None else max(len(source.classes), int(source.labels.max()) + 1)


def _shard_size(layout: Layout) -> int:
    width = math.prod(layout.shape) * (1 if len(layout.shape) == 3 else 4)
    return max(1, min(1000, SHARD_BYTES // width))


def _sweep_old(dest: Path) -> None:
    """Removes what killed imports left; not what another one may be writing now."""
    for path in dest.glob(f"{files.TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()
