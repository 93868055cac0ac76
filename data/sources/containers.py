"""Image files as others keep them: folders, zip archives, tars (WebDataset's or plain).

    a path  ->  ImageSource: names, labels, and one payload of bytes a sample

Each payload class knows where sample `row` lies and can be pickled; opened files are kept a process, a few at a time.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.sources.base import (
    MISSING,
    SPLIT_FOLDERS,
    ImageSource,
    by_folders,
    edm_labels,
    is_image,
    no_splits,
    pick_split,
    split_folders,
)

# --- folders ------------------------------------------------------------------------------------------------------


def walk(folder: Path) -> list[str]:
    """Every visible file below a folder, relative, with `/`, sorted by name; linked folders are followed once."""
    found: list[str] = []

    def visit(path: str, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        status = os.stat(path)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for entry in os.scandir(path):
            if hidden(entry.name):
                continue
            if entry.is_dir():
                visit(entry.path, f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file():
                found.append(prefix + entry.name)

    visit(str(folder), "", frozenset())
    return sorted(found, key=normal)


def begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def normal(name: str) -> str:
    """One spelling of accented letters: file systems differ in the one they return."""
    return unicodedata.normalize("NFC", name)


@dataclass
class FilePayload:
    folder: str
    names: Sequence[str]

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        with open(os.path.join(self.folder, self.names[row]), "rb") as file:
            return file.read(-1 if limit is None else limit)


def image_folder(folder: Path, split: str | None, listing: list[str]) -> ImageSource:
    """Images below a folder, labelled by EDM's `dataset.json` or by sub-folder (see `by_folders`)."""
    listed = split_folders(str(folder), split, [name for name in listing if is_image(name)])
    given = (folder / "dataset.json").read_bytes() if "dataset.json" in listing else None
    return _images("image folder", str(folder), listed, FilePayload(str(folder), listed), given, _others(listing))


def _images(
    kind: str, where: str, names: list[str], payload: Any, given: bytes | None, ignored: tuple[str, ...]
) -> ImageSource:
    labels, classes = by_folders(names)
    if given is not None and (edm := edm_labels(given, names, where)) is not None:
        labels, classes = edm, ()
    return ImageSource(kind, where, [normal(name) for name in names], payload, labels, classes, ignored)


def _others(listing: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in listing if not is_image(name) and name != "dataset.json")


# --- zip ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass
class ZipPayload:
    path: str
    names: Sequence[str]

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        try:
            with _zip(self.path).open(self.names[row]) as file:
                return file.read(-1 if limit is None else limit)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # damaged, encrypted, unknown method
            raise ValueError(str(error)) from error


def zip_images(path: Path, split: str | None) -> ImageSource:
    """Images in a zip archive; nothing is unpacked. Labels as in `image_folder`."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = [info.filename for info in archive.infolist() if not info.is_dir()]
            listing = sorted(
                (f for f in files if not hidden(f.rpartition("/")[2]) and "__MACOSX/" not in f), key=normal
            )
            given = archive.read("dataset.json") if "dataset.json" in listing else None
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged or truncated zip archive ({error})") from error
    twice = len(listing) - len(set(listing))
    if twice:
        raise UserError(f"{path}: {twice} names appear twice in this archive")
    names = split_folders(str(path), split, [name for name in listing if is_image(name)])
    if not names:
        raise UserError(f"{path}: holds no images")
    return _images("zip archive", str(path), names, ZipPayload(str(path), names), given, _others(listing))


# --- tar ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _descriptor(path: str) -> int:
    return os.open(path, os.O_RDONLY)


@dataclass(frozen=True)
class Member:
    """A file in a tar: the tar's number, the name, and where its bytes lie."""

    tar: int
    name: str
    first: int
    size: int

    @property
    def stem(self) -> str:
        """WebDataset's key: the name up to the first dot of its last part."""
        folder, _, base = self.name.rpartition("/")
        return f"{folder}/{base.split('.', 1)[0]}"


@dataclass
class TarPayload:
    paths: Sequence[str]
    members: Sequence[Member]

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        return read_member(self.paths, self.members[row], limit)


def read_member(paths: Sequence[str], member: Member, limit: int | None = None) -> bytes:
    size = member.size if limit is None else min(limit, member.size)
    payload = os.pread(_descriptor(paths[member.tar]), size, member.first)
    if len(payload) != size:
        raise ValueError("the tar file is cut short")
    return payload


def tar_images(paths: Sequence[Path], where: Path, split: str | None) -> ImageSource:
    """Images in tar files, in the order in which they stand there; the tars in the order of their names.

    Where `.cls` files are among them the tars are in WebDataset's form: neighbouring files of one stem are a sample.
    Elsewhere every image is a sample, and sub-folders are classes.
    """
    chosen = split_files(paths, str(where), split)
    members = [m for number, path in enumerate(chosen) for m in _tar_index(number, path)]
    images = [m for m in members if is_image(m.name)]
    files = [str(path) for path in chosen]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] = ()
    if any(m.name.endswith(".cls") for m in members):
        images, labels = _webdataset(files, members)
    else:
        labels, classes = by_folders([m.name for m in images])
    prefix = [f"{path.name}/" if len(chosen) > 1 else "" for path in chosen]
    return ImageSource(
        kind="tar",
        where=str(where),
        names=[prefix[m.tar] + normal(m.name) for m in images],
        payload=TarPayload(files, images),
        labels=labels,
        classes=classes,
        ignored=tuple(prefix[m.tar] + m.name for m in members if not is_image(m.name) and not m.name.endswith(".cls")),
    )


def _tar_index(number: int, path: Path) -> list[Member]:
    if begins(path, b"\x1f\x8b"):
        raise UserError(f"{path}: is compressed, which allows no reading in parallel: gunzip it first")
    try:
        with tarfile.open(path, "r:") as archive:
            members = [Member(number, m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: damaged or truncated tar ({error})") from error
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        if file.read().strip(b"\0"):
            raise UserError(f"{path}: truncated tar (it lacks the end mark)")
    return [m for m in members if not hidden(m.name.rpartition("/")[2])]


def _webdataset(paths: Sequence[str], members: Sequence[Member]) -> tuple[list[Member], NDArray[np.int64]]:
    images, labels = [], []
    for (tar, stem), group in itertools.groupby(members, key=lambda m: (m.tar, m.stem)):
        sample = list(group)
        pictures = [m for m in sample if is_image(m.name)]
        numbers = [m for m in sample if m.name.endswith(".cls")]
        name = f"{paths[tar]}: sample {stem.lstrip('/')}"
        if len(pictures) > 1 or len(numbers) > 1:
            raise UserError(f"{name} has {len(pictures)} images and {len(numbers)} labels: one of each is right")
        if numbers and not pictures:
            raise UserError(f"{name} has a label but no image")
        if not pictures:
            continue
        images += pictures
        labels.append(_whole_number(read_member(paths, numbers[0]), name) if numbers else MISSING)
    return images, np.array(labels, dtype=np.int64)


def _whole_number(text: bytes, name: str) -> int:
    if not text.strip().isdigit():
        raise UserError(f"{name} has the label {text[:40].decode(errors='replace')!r}, not a whole number from 0 up")
    return int(text)


def split_files(paths: Sequence[Path], where: str, split: str | None) -> list[Path]:
    """Takes the files of one split where every file name has a word for one (`train`, `test`, `val`); else all."""
    word = re.compile(r"(?<![a-z])(" + "|".join(sorted(SPLIT_FOLDERS, key=len, reverse=True)) + r")(?![a-z])")
    found = [word.search(path.name.lower()) for path in paths]
    splits = [SPLIT_FOLDERS[match[1]] if match else "" for match in found]
    if "" in splits or len(set(splits)) < 2:
        no_splits(where, split)
        return list(paths)
    chosen = pick_split(where, split, sorted(set(splits)))
    return [path for path, name in zip(paths, splits, strict=True) if name == chosen]
