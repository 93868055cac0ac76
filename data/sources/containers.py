"""Image files in folders, zip archives and tars (WebDataset or plain).

    a Listing  ->  ImageSource: names, labels, and one payload of bytes per sample

A payload object knows the location of the bytes of sample `row`, and can be pickled. Each process keeps a few files
open.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.sources import archives, base, listing
from entroloop.data.sources.base import ImageSource
from entroloop.data.sources.given import Given, Lists
from entroloop.data.sources.listing import Entry, Listing
from entroloop.data.sources.names import Ignored, Packed, Prefixed

EDM = "dataset.json"

# --- folders and zip archives -------------------------------------------------------------------------------------


@dataclass
class FilePayload:
    folder: str
    names: Sequence[str]

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        with open(os.path.join(self.folder, self.names[row]), "rb") as file:
            return file.read(-1 if limit is None else limit)


@functools.lru_cache(maxsize=4)
def _zip(path: str, stamp: tuple[int, ...]) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass
class ZipPayload:
    path: str
    names: Sequence[str]

    def __post_init__(self) -> None:
        self.stamp = listing.stamp(self.path)

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        with _zip(self.path, self.stamp).open(self.names[row]) as file:
            return file.read(-1 if limit is None else limit)


def images(given: Given) -> ImageSource | None:
    """Images below a folder, or in a zip archive, which is read without unpacking it to disk.

    EDM's `dataset.json` or the sub-folders give the labels (see `by_folders`).
    """
    if given.found.find(base.is_image):
        return _images("image folder", given.found, given.split, FilePayload)
    if given.head[:2] != b"PK":
        return None
    found = archives.of_zip(given.path)
    if not found.find(base.is_image):
        raise UserError(f"{given.path}: holds no images")
    return _images("zip archive", found, given.split, ZipPayload)


def _images(kind: str, found: Listing, split: str | None, payload: type[FilePayload | ZipPayload]) -> ImageSource:
    pictures = found.find(base.is_image)
    names = base.split_folders(found.where, split, pictures)
    samples = payload(found.where, Packed(entry.place for entry in found.take(names)))
    labels, classes = base.by_folders(names)
    if EDM in found.entries:
        place = found.take([EDM])[0].place
        with reading(f"{found.where}: {EDM}"):
            edm = base.edm_labels(payload(found.where, [place])(0), names, found.where, found.entries)
        if edm is not None:
            labels, classes = edm, ()
    ignored = found.ignored({*names, EDM}, pictures)
    return ImageSource(kind, found.where, Packed(names), samples, labels, classes, Ignored(ignored.items()))


# --- tar ----------------------------------------------------------------------------------------------------------


_TAR = re.compile(r"\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4|z))$", re.IGNORECASE)


def is_tar(name: str, head: bytes = b"") -> bool:
    """Whether a file is a tar, by its name or, if they are known, by its first bytes."""
    return head[257:262] == b"ustar" or _TAR.search(name) is not None


def tars(given: Given) -> ImageSource | None:
    """Images in a tar, or in all tars of a folder."""
    if given.is_folder:
        return of_files(given, is_tar, functools.partial(tar_images, lists=given.lists))
    if not is_tar(given.path.name, given.head):
        return None
    given.no_splits()
    return tar_images([(given.path.name, given.path)], given.path, given.lists)


@functools.lru_cache(maxsize=8)
def _opened(path: str, stamp: tuple[int, ...]) -> io.FileIO:
    return io.FileIO(path)


@dataclass
class TarPayload:
    """Reads samples from tars. `places` has, for each sample, the number of its tar, its first byte and its size."""

    paths: Sequence[str]
    places: NDArray[np.int64]  # [N, 3]

    def __post_init__(self) -> None:
        self.stamps = [listing.stamp(path) for path in self.paths]

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        tar, first, size = self.places[row].tolist()
        size = size if limit is None else min(limit, size)
        payload = os.pread(_opened(self.paths[tar], self.stamps[tar]).fileno(), size, first)
        if len(payload) != size:
            raise ValueError("the tar file is cut short")
        return payload


def tar_images(tars: Sequence[tuple[str, Path]], where: Path, lists: Lists | None = None) -> ImageSource:
    """Images in tars, given as (name, path), in the order of the tars and of the images in them.

    As in WebDataset, members whose names are equal up to the first dot are one sample. A sample has one image and at
    most one `.cls`. If no tar holds a `.cls`, the sub-folders are the classes.
    """
    prefixes = [f"{tar}/" if len(tars) > 1 else "" for tar, _ in tars]
    members, ignored = Packed(), Ignored()
    places, labels = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for number, found in enumerate(_lists([path for _, path in tars], lists)):
        members.append(found.names)
        places.append(np.insert(found.places, 0, number, axis=1))
        labels.append(found.labels)
        ignored.extend((prefixes[number] + name, reason) for name, reason in found.ignored.items())
    payload = TarPayload([str(path) for _, path in tars], np.concatenate(places))
    given, classes = np.concatenate(labels), tuple[str, ...]()
    own = given if (given != base.MISSING).any() else None
    if own is None:
        own, classes = base.by_folders(members)
    names = Prefixed(prefixes, payload.places[:, 0], members)
    return ImageSource("tar", str(where), names, payload, own, classes, ignored)


class _Listed(NamedTuple):
    """The images of one tar, the first byte and the size of each, int64 [n, 2], its label or MISSING, and the rest."""

    names: Packed
    places: NDArray[np.int64]
    labels: NDArray[np.int64]
    ignored: Ignored


def _lists(tars: Sequence[Path], shared: Lists | None) -> Iterator[_Listed]:
    """The list of each tar. Parts begin at different tars, so that parts at work together list each tar about once."""
    kept = [None if shared is None else _place_of_list(path, number, shared) for number, path in enumerate(tars)]
    if shared is not None and shared.part.count > 1:
        first = len(tars) * shared.part.index // shared.part.count
        for number in (*range(first, len(tars)), *range(first)):
            if (place := kept[number]) and not place.exists():
                _write(_listed(tars[number]), place)
    for path, place in zip(tars, kept, strict=True):
        yield (place and _read(place)) or _listed(path)


def _place_of_list(tar: Path, number: int, shared: Lists) -> Path:
    """The file of a list. Its name changes when the tar does, and is the same on every machine that sees the tar."""
    status = tar.stat()
    return shared.folder / f"{number:06d}-{status.st_size}-{status.st_mtime_ns}.npz"


def _listed(tar: Path) -> _Listed:
    found = archives.of_tar(tar)
    images = _by_key(found, base.is_image, "images")
    numbers = _by_key(found, _is_number, "labels")
    if lone := numbers.keys() - images.keys():
        raise UserError(f"{tar}: {min(numbers[key] for key in lone)} is a label without an image")
    read = TarPayload([str(tar)], np.insert(_places(found.take(numbers.values())), 0, 0, axis=1))
    label_of = {key: base.whole_number(read(row), f"{tar}: {name}") for row, (key, name) in enumerate(numbers.items())}
    labels = np.array([label_of.get(key, base.MISSING) for key in images], np.int64)
    others = found.ignored({*images.values(), *numbers.values()})
    places = _places(found.take(images.values()))
    return _Listed(Packed(images.values()), places, labels, Ignored(others.items()))


def _write(found: _Listed, place: Path) -> None:
    reasons = files.json_bytes(list(found.ignored.by_reason))
    arrays: dict[str, Any] = {"places": found.places, "labels": found.labels}
    arrays["reasons"] = np.frombuffer(reasons, np.uint8)
    for number, names in enumerate([found.names, *found.ignored.by_reason.values()]):
        arrays[f"text{number}"], arrays[f"ends{number}"] = names.arrays()
    files.create(place, lambda file: np.savez(file, **arrays))


def _read(place: Path) -> _Listed | None:
    """The list that `_write` wrote; None if there is none, or a damaged one."""
    try:
        with np.load(place, allow_pickle=False) as found:
            ignored = Ignored()
            reasons = json.loads(found["reasons"].tobytes())
            names, *others = (Packed.of(found[f"text{i}"], found[f"ends{i}"]) for i in range(1 + len(reasons)))
            ignored.by_reason = dict(zip(reasons, others, strict=True))
            return _Listed(names, found["places"], found["labels"], ignored)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _places(entries: Sequence[Entry]) -> NDArray[np.int64]:
    """The first byte and the size of each entry: int64 [n, 2]."""
    return np.array([entry.place for entry in entries], np.int64).reshape(-1, 2)


def _is_number(name: str) -> bool:
    return name.lower().endswith(".cls")


def _by_key(found: Listing, wanted: Callable[[str], bool], what: str) -> dict[str, str]:
    """WebDataset's key, which is the name up to the first dot of its last part -> the wanted name that has this key.

    Raises UserError when two wanted names have the same key.
    """
    names: dict[str, str] = {}
    for name in found.find(wanted):
        folder, _, base = name.rpartition("/")
        other = names.setdefault(f"{folder}/{base.split('.', 1)[0]}", name)
        if other != name:
            raise UserError(
                f"{found.where}: {other} and {name} are two {what} of one sample, since their names are equal up to "
                "the first dot: one is right; to import each as a sample, unpack the tar and give the folder"
            )
    return names


def of_files(
    given: Given, wanted: Callable[[str], bool], read: Callable[[Sequence[tuple[str, Path]], Path], ImageSource]
) -> ImageSource | None:
    """The wanted files of a folder as one source; None if there are none.

    read  opens files, given as (name, path), and the folder
    """
    files = given.found.find(wanted)
    if not files:
        return None
    names = split_files(files, str(given.path), given.split)
    source = read([(name, given.found.path(name)) for name in names], given.path)
    others = given.found.ignored(set(names), files)
    inside = ((name, reason) for name, reason in source.ignored.items() if name not in others)
    source.ignored = Ignored(itertools.chain(others.items(), inside))
    return source


def split_files(names: Sequence[str], where: str, split: str | None) -> list[str]:
    """The files of one split, if every name contains the word of a split (`train`, `test`, `val`); else all files.

    The word may also be in the name of a file's folder.
    """
    word = re.compile(r"(?<![a-z])(" + "|".join(sorted(base.SPLIT_FOLDERS, key=len, reverse=True)) + r")(?![a-z])")
    found = [word.search(PurePosixPath(name).name.lower()) or word.search(name.lower()) for name in names]
    return base.of_split(where, split, names, [base.SPLIT_FOLDERS[match[1]] if match else "" for match in found])
