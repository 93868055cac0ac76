"""Where real data comes from: sets that others stored, behind one interface.

    "digits", a file or a folder  ->  open_source  ->  Source: names, labels, samples in the order of the source's names

A source lists its samples at once and reads them when they are asked for. It can be pickled, so that processes share
the reading. Nothing is unpacked to disk, so names inside archives can be anything.

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

HEADER = 2**16  # bytes that nearly always hold what an image's header says
LABELS = 2**31  # labels are smaller
NO_IMAGE = "damaged or not an image"
MISSING = -1  # the label of a sample that has none, in a source where others have one
IMAGE_SUFFIXES = (
    *(
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".avif",
        ".jp2",
        ".j2k",
        ".j2c",
        ".jpc",
        ".jpf",
        ".jpx",
    ),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


class Source(Protocol):
    """A set that can be imported.

    kind     what it is, in words
    where    its path, for messages
    names    the source's own name of each sample, in the order of import
    labels   int64 [N], MISSING where a sample has none; None for an unlabelled set
    classes  names of the classes, where the source has them
    ignored  name -> reason of every entry there that is neither a sample nor part of one
    """

    kind: str
    where: str
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: Mapping[str, str]

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, rows: Iterable[int]) -> Iterator[Any]:
        """The samples of these rows: opened images from an ImageSource, else uint8 [C, H, W] or float32 [D]."""

    def naming(self, row: int) -> AbstractContextManager[None]:
        """A context that names this sample in whatever a damaged one raises."""


@dataclass
class ArraySource:
    """Samples that are arrays already: uint8 [N, C, H, W] or float32 [N, D]."""

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
        """The bytes of one encoded image, or at least the first `limit` of them. Must survive pickling."""


@dataclass
class ImageSource:
    """Encoded images, which must be decoded: that pays to share between processes."""

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

    def header(self, row: int, *, sized: bool = True) -> tuple[Channels, tuple[int, int]]:
        """Channels and (width, height) of one image, mostly from its first bytes; (0, 0) unless `sized`.

        The size of a PNG takes reading all of it, since the file may end with the note of how it is to be turned.
        """
        with self.naming(row):
            with contextlib.suppress(Exception):
                return _facts(open_image(self.payload(row, HEADER)), sized)
            return _facts(open_image(self.payload(row)), sized)  # some formats have it elsewhere
        raise AssertionError

    def naming(self, row: int) -> AbstractContextManager[None]:
        return reading(f"{self.where}: {self.names[row]}", NO_IMAGE)


def _facts(image: Image.Image, sized: bool) -> tuple[Channels, tuple[int, int]]:
    return channels_of(image), upright_size(image) if sized else (0, 0)


def pick_split(where: str, split: str | None, available: Sequence[str]) -> str:
    """The split to read, `train` (or the only one) when none is asked for.

    Raises UserError listing the splits there are.
    """
    if split is None:
        return "train" if "train" in available else available[0]
    if split not in available:
        raise UserError(f"--split {split}: {where} has {' and '.join(available)}")
    return split


def no_splits(where: str, split: str | None) -> None:
    """Raises UserError if a split is asked of a source that has none of its own."""
    if split is not None:
        raise UserError(f"--split {split}: {where} has no splits of its own; --heldout N makes one by seed")


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def split_folders(where: str, split: str | None, names: list[str]) -> list[str]:
    """Takes one split where the first-level folders are `train`, `test`, `val` and nothing else; else all names."""
    splits = [SPLIT_FOLDERS.get(name.split("/")[0].lower(), "") if "/" in name else "" for name in names]
    if "" in splits or len(set(splits)) < 2:
        no_splits(where, split)
        return names
    chosen = pick_split(where, split, sorted(set(splits)))
    return [name for name, own in zip(names, splits, strict=True) if own == chosen]


def by_folders(names: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels from sub-folders: the first level at which the names differ is the class.

    None where there are no sub-folders, and for numbered ones that only keep folders small (FFHQ: 12345 in 12000/).
    Files beside class folders are MISSING a label.
    """
    paths = [tuple(part for part in name.split("/") if part not in ("", ".", "..")) for name in names]
    folders = {path[:-1] for path in paths}
    depth = 0  # of the folders that all have in common
    while len({path[: depth + 1] for path in folders}) == 1 and all(len(path) > depth for path in folders):
        depth += 1
    tops = [path[depth] if len(path) > depth + 1 else "" for path in paths]
    classes = tuple(sorted({top for top in tops if top}))
    if len(classes) < 2 or all(_numbered(top, path[-1]) for top, path in zip(tops, paths, strict=True)):
        return None, ()
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number.get(top, MISSING) for top in tops], dtype=np.int64), classes


def _numbered(folder: str, file: str) -> bool:
    stem = PurePosixPath(file).stem.removeprefix("img")
    return (
        len(folder) >= 5
        and folder.isdecimal()
        and stem.isdecimal()
        and int(stem) // 1000
        in (
            int(folder),  # EDM: 00012/img00012345.png
            int(folder) // 1000,  # FFHQ: 12000/12345.png
        )
    )


def whole_number(text: bytes, name: str) -> int:
    """The label in a `.cls` file. Raises UserError."""
    if not text.strip().isdigit() or int(text.strip()[:99]) >= LABELS:
        raise UserError(f"{name}: holds {text[:40].decode(errors='replace')!r}, not a whole number from 0 up")
    return int(text)


def edm_labels(text: bytes, names: Sequence[str], where: str, known: Container[str]) -> NDArray[np.int64] | None:
    """Labels from EDM's `dataset.json`: {"labels": [[name, class], …]}; MISSING where one of `names` is not listed.

    known  the names that the file may hold: those of all splits

    Raises UserError when the file is damaged, holds anything but whole numbers, or labels an image that is not there.
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
