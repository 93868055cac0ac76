"""Recognises the source of an import from its name or its contents, and opens it."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from entroloop.data import address
from entroloop.data.address import is_remote
from entroloop.data.catalogue import SOURCES
from entroloop.data.errors import UserError, reading, reason
from entroloop.data.registry import hint, is_own, said
from entroloop.data.sources import arrays, cifar, containers, hub, listing, parquet
from entroloop.data.sources.base import ArraySource, Source, is_image, no_splits
from entroloop.data.sources.rows import Rows, is_rows
from entroloop.data.sources.sealed import SealedSource
from entroloop.data.store import manifest, remote
from entroloop.data.store.index import open_set

REQUIRED = ("kind", "where", "names", "labels", "classes", "ignored", "read", "naming")


def open_source(text: str, split: str | None = None, *, key: str | None = None, labels: bool = True) -> Source:
    """Opens a source: a file or folder, the address of a sealed set, or a name in SOURCES (`digits`, …).

    key     name of the array to read, if a file or feature folder holds several (see `rows`)
    labels  False ignores labels in an archive of arrays

    Raises UserError when the source does not exist, is empty, damaged or of no known kind, or has no such split or key.
    """
    source = _open(text, split, key, labels)
    of_rows = isinstance(source, ArraySource) and isinstance(source.array, Rows)
    if key is not None and not of_rows and not text.startswith(hub.PREFIX):
        raise UserError(f"--key {key}: {text} has no arrays with names")
    return source


def _open(text: str, split: str | None, key: str | None, labels: bool) -> Source:
    if text in SOURCES.built_in:
        no_splits(text, split)
        found: Source = SOURCES.load(text)()
        return found
    if text.startswith(hub.PREFIX):
        return hub.open_hub(text, split, key, labels)
    if is_remote(address.check(text)):
        no_splits(text, split)
        return SealedSource.of(remote.open_dataset(text))
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return _folder(path, split, key, labels)
        if path.is_file():
            return _file(path, split, key, labels)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({reason(error)})") from error
    if is_own(text) or text in SOURCES.names:
        no_splits(text, split)
        return _own(text)
    raise UserError(f"{text}: no such file or folder: {hint(text, SOURCES.names, 'give a file, a folder or one of')}")


def _own(name: str) -> Source:
    """A source that is not built in. Raises UserError when its function fails or does not return a Source."""
    try:
        found = SOURCES.load(name)()
    except UserError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise UserError(f"source {name}: called without arguments it raised {said(error)}") from error
    lacking = [word for word in REQUIRED if not hasattr(found, word)]
    if lacking:
        raise UserError(f"source {name}: returned {type(found).__name__}, which lacks {', '.join(lacking)}")
    source: Source = found
    return source


TAR = re.compile(r"\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4|z))$", re.IGNORECASE)


def _folder(path: Path, split: str | None, key: str | None, labels: bool) -> Source:
    if is_rows(path):
        no_splits(str(path), split)
        return arrays.stored(path, key, labels)
    if manifest.is_sealed(path):
        no_splits(str(path), split)
        return SealedSource.of(open_set(path))
    found = listing.of_folder(path)
    if not found.entries:
        raise UserError(f"{path}: empty folder")
    if kind := cifar.version(found.entries):
        return cifar.cifar(path, split, kind)
    if any("/" not in name and arrays.is_idx(name) for name in found.entries):
        return arrays.idx_folder(found, split)
    if found.find(is_image):
        return containers.image_folder(found, split)
    for wanted, read in ((_is_tar, containers.tar_images), (_is_parquet, parquet.parquet_images)):
        if files := found.find(wanted):
            names = containers.split_files(files, str(path), split)
            source = read([(name, found.path(name)) for name in names], path)
            source.ignored = {**found.ignored(set(names), files), **source.ignored}
            return source
    if len(single := found.find(lambda name: name.lower().endswith((".npy", ".npz")))) == 1:
        no_splits(str(path), split)
        array = arrays.stored(found.path(single[0]), key, labels)
        array.ignored = {**found.ignored(single), **array.ignored}
        return array
    raise UserError(f"{path}: holds no images ({_some(list(found.entries))})")


def _is_tar(name: str) -> bool:
    return TAR.search(name) is not None


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _file(path: Path, split: str | None, key: str | None, labels: bool) -> Source:
    if is_rows(path):
        no_splits(str(path), split)
        return arrays.stored(path, key, labels)
    head = _head(path)
    if not head:
        raise UserError(f"{path}: holds no rows: the file is empty")
    if head[:3] == b"\0\0\x08" or arrays.is_idx(path.name):
        return arrays.idx_file(path, split)
    if head[:2] == b"PK":
        return containers.zip_images(path, split)
    if head[:4] == b"PAR1":
        no_splits(str(path), split)
        return parquet.parquet_images([(listing.spelled(os.fsencode(path.name)), path)], path)
    if head[257:262] == b"ustar" or _is_tar(path.name):
        if kind := cifar.version(_tar_names(path)):
            return cifar.cifar(path, split, kind)
        no_splits(str(path), split)
        return containers.tar_images([(path.name, path)], path)
    if is_image(path.name):
        raise UserError(f"{path}: is a single image: give its folder")
    raise UserError(f"{path}: not a kind of data set that can be imported")


def _head(path: Path) -> bytes:
    """The first 512 bytes of a file's contents, unzipped if the file is gzipped."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[:2] != b"\x1f\x8b":
        return head
    with reading(str(path), "damaged or truncated"), gzip.open(path) as unzipped:
        return unzipped.read(512)


def _tar_names(path: Path) -> list[str]:
    """The first 20 names in a tar; a CIFAR archive has fewer."""
    names: list[str] = []
    with reading(str(path), "damaged or truncated archive"), path.open("rb") as file:
        compressed = file.read(6).startswith(tuple(listing.COMPRESSED))
    with (
        reading(str(path), "damaged or truncated archive") if compressed else contextlib.suppress(Exception),
        tarfile.open(path) as archive,
    ):
        names += (member.name for member, _ in zip(archive, range(20), strict=False))
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … {len(names)} files" if len(names) > 3 else "")
