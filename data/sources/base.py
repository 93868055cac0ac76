"""The interface of sources: sets of real data in formats other than entroloop's own.

    "digits", a file or a folder  ->  open_source  ->  Source: names, labels, samples in the order of the source's names

A source lists its samples when it is opened and reads a sample when a caller asks for it. A source can be pickled, so
several processes can share the reading. Nothing is unpacked to disk, so archives may contain any names.

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from entroloop.data.errors import UserError, reading
from entroloop.data.sources.images import Channels, channels_of, open_image, upright_size
from entroloop.data.sources.listing import spelled
from entroloop.data.sources.rows import Rows

HEADER = 2**16  # bytes; nearly always enough to read an image's header
LABELS = 2**31  # all labels are smaller
NO_IMAGE = "damaged or not an image"
MISSING = -1  # label of an unlabelled sample in a source where other samples have labels
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
    ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip


class Source(Protocol):
    """A set that can be imported.

    kind     kind of the source, in words
    where    its path, for messages
    names    the source's own name of each sample, in the order of import
    labels   int64 [N], MISSING for a sample without a label; None for an unlabelled set
    classes  names of the classes; empty if the source does not name them
    ignored  name -> reason, for every entry that is neither a sample nor part of a sample
    """

    kind: str
    where: str
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: Mapping[str, str]

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, rows: Iterable[int]) -> Iterator[Any]:
        """The samples of these rows: opened images (ImageSource), or arrays, uint8 [C, H, W] or float32 [D]."""

    def naming(self, row: int) -> AbstractContextManager[None]:
        """A context that turns any error of a damaged sample into a UserError that names this sample."""


@dataclass
class ArraySource:
    """Samples in an array: uint8 [N, C, H, W] or float32 [N, D]."""

    kind: str
    where: str
    array: NDArray[Any] | Rows
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] = ()
    prefix: str = ""
    ignored: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def names(self) -> Sequence[str]:
        width = len(str(max(len(self.array) - 1, 0)))
        return [f"{self.prefix}{i:0{width}d}" for i in range(len(self.array))]

    def read(self, rows: Iterable[int]) -> Iterator[NDArray[Any]]:
        for row in rows:
            yield self.array[row]

    def naming(self, row: int) -> AbstractContextManager[None]:
        return reading(f"{self.where}: {self.names[row]}", NO_IMAGE)


class Payload(Protocol):
    def __call__(self, row: int, limit: int | None = None) -> bytes:
        """The bytes of one encoded image, or at least its first `limit` bytes. The object must survive pickling."""


@dataclass
class ImageSource:
    """Encoded images. Decoding is slow, so it pays to share it between processes."""

    kind: str
    where: str
    names: Sequence[str]
    payload: Payload
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)

    def read(self, rows: Iterable[int]) -> Iterator[Image.Image]:
        for row in rows:
            with self.naming(row):
                image = open_image(self.payload(row))
            yield image

    def header(self, row: int, *, sized: bool = True) -> tuple[Channels, int, int]:
        """Channels, width and height of one image, mostly from its first bytes. The size is 0 x 0 unless `sized`.

        To find the size of a PNG, the whole file must be read, because its EXIF orientation may be at the end.
        """

        def facts(limit: int | None) -> tuple[Channels, int, int]:
            image = open_image(self.payload(row, limit))
            return channels_of(image), *(upright_size(image) if sized else (0, 0))

        with self.naming(row):
            with contextlib.suppress(Exception):
                return facts(HEADER)
            return facts(None)  # some formats have their header elsewhere
        raise AssertionError

    def naming(self, row: int) -> AbstractContextManager[None]:
        return reading(f"{self.where}: {self.names[row]}", NO_IMAGE)


def pick_split(where: str, split: str | None, available: Sequence[str]) -> str:
    """The split to read. If `split` is None: `train` if it is available, else the first split.

    Raises UserError, listing the available splits, when `split` is not among them.
    """
    if split is None:
        return "train" if "train" in available else available[0]
    if split not in available:
        raise UserError(f"--split {split}: {where} has {' and '.join(available)}")
    return split


def no_splits(where: str, split: str | None) -> None:
    """Raises UserError when the user asks for a split of a source that has no splits."""
    if split is not None:
        raise UserError(f"--split {split}: {where} has no splits of its own; --heldout N makes one by seed")


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def split_folders(where: str, split: str | None, names: list[str]) -> list[str]:
    """The names of one split, if all names are in first-level folders that are named after splits; else all names."""
    splits = [SPLIT_FOLDERS.get(name.split("/")[0].lower(), "") if "/" in name else "" for name in names]
    return of_split(where, split, names, splits)


def of_split(where: str, split: str | None, names: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The names of one split, given the split of each name; all names if one has no split ("") or all have the same."""
    if "" in splits or len(set(splits)) < 2:
        no_splits(where, split)
        return list(names)
    chosen = pick_split(where, split, sorted(set(splits)))
    return [name for name, own in zip(names, splits, strict=True) if own == chosen]


def by_folders(names: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels, int64 [N], and classes from sub-folders. The first folder level at which the names differ is the class.

    Labels are None if there are no sub-folders, or if they are numbered ones that only keep folders small (FFHQ: 12345
    in 12000/). Files beside class folders have the label MISSING.
    """
    folders = {folder: _parts(folder) for folder in {name.rpartition("/")[0] for name in names}}
    paths = set(folders.values())
    depth = 0  # number of leading folders that all names have in common
    while len({path[: depth + 1] for path in paths}) == 1 and all(len(path) > depth for path in paths):
        depth += 1
    tops = {folder: path[depth] if len(path) > depth else "" for folder, path in folders.items()}
    classes = tuple(sorted({top for top in tops.values() if top}))
    split = (name.rpartition("/") for name in names)
    if len(classes) < 2 or all(_numbered(tops[folder], file) for folder, _, file in split):
        return None, ()
    number = {name: i for i, name in enumerate(classes)}
    labels = (number.get(tops[name.rpartition("/")[0]], MISSING) for name in names)
    return np.fromiter(labels, np.int64, len(names)), classes


def _parts(folder: str) -> tuple[str, ...]:
    return tuple(part for part in folder.split("/") if part not in ("", ".", ".."))


def _numbered(folder: str, file: str) -> bool:
    """Whether the folder only keeps folders small: 00012/img00012345.png (EDM), or 12000/12345.png (FFHQ)."""
    stem = PurePosixPath(file).stem.removeprefix("img")
    if len(folder) < 5 or not (folder.isdecimal() and stem.isdecimal()):
        return False
    return int(stem) // 1000 in (int(folder), int(folder) // 1000)


def whole_number(text: bytes, name: str) -> int:
    """The label in a `.cls` file. Raises UserError, naming the file, when it is not a whole number below LABELS."""
    if not text.strip().isdigit() or int(text.strip()[:99]) >= LABELS:
        raise UserError(f"{name}: holds {text[:40].decode(errors='replace')!r}, not a whole number from 0 up")
    return int(text)


def edm_labels(text: bytes, names: Sequence[str], where: str, known: Container[str]) -> NDArray[np.int64] | None:
    """Labels from EDM's `dataset.json`: {"labels": [[name, class], …]}. Names that are not listed are MISSING a label.

    known  the names that the file may label: the names of all splits
    ->     int64 [N]; None if no name has a label

    Raises UserError when the file is damaged, when a label is not a whole number, when a name has two labels, or when
    the file labels an image that does not exist.
    """
    by_name: dict[str, Any] = {}
    with reading(f"{where}: dataset.json"):
        pairs = json.loads(text).get("labels")
        if pairs is None:
            return None
        for given, label in pairs:
            name = spelled(str(given).replace("\\", "/"))
            if name not in known:
                raise UserError(f"{where}: dataset.json labels {name}, which is not there")
            if by_name.setdefault(name, label) != label:
                raise UserError(f"{where}: dataset.json gives {name} two labels")
    labels = [by_name.get(name) for name in names]
    for name, label in zip(names, labels, strict=True):
        if label is not None and (type(label) is not int or not 0 <= label < LABELS):
            raise UserError(f"{where}: dataset.json gives {name} the label {label!r}, not a whole number from 0 up")
    found = np.array([MISSING if label is None else label for label in labels], dtype=np.int64)
    return None if (found == MISSING).all() else found
