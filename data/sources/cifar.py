"""CIFAR-10 and CIFAR-100 as their authors publish them: python or binary version, archive or unpacked folder.

    path  ->  ArraySource: uint8 [N, 3, 32, 32], labels (the 100 fine classes of CIFAR-100)

Both versions give the same samples under the same names. Reading a pickle never runs code that the pickle may contain.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import pickle
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError, reading
from entroloop.data.sources import archives, listing
from entroloop.data.sources.base import ArraySource, pick_split
from entroloop.data.sources.containers import is_tar
from entroloop.data.sources.given import Given
from entroloop.data.sources.listing import Entry, Listing

Files = dict[str, tuple[str, ...]]
TEN: Files = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
TEN_BINARY: Files = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
HUNDRED: Files = {"train": ("train",), "test": ("test",)}
HUNDRED_BINARY: Files = {"train": ("train.bin",), "test": ("test.bin",)}
#: By version: files of the two splits, file of class names, number of label bytes before each image (None for python).
VERSIONS: dict[str, tuple[Files, str, int | None]] = {
    "CIFAR-10 python": (TEN, "batches.meta", None),
    "CIFAR-10 binary": (TEN_BINARY, "batches.meta.txt", 1),
    "CIFAR-100 python": (HUNDRED, "meta", None),
    "CIFAR-100 binary": (HUNDRED_BINARY, "fine_label_names.txt", 2),
}
UNPACK = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\0": lzma.decompress}
PIXELS = 3 * 32 * 32
ALLOWED = {
    ("multiarray", "_reconstruct"),
    ("numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def recognise(given: Given) -> ArraySource | None:
    """By the names in a folder or an archive."""
    names: Iterable[str] = given.found.entries
    if not given.is_folder and is_tar(given.path.name, given.head):
        names = _tar_names(given.path)
    kind = version(names)
    return cifar(given.path, given.split, kind) if kind else None


def _tar_names(path: Path) -> list[str]:
    """The first 20 names in a tar; a CIFAR archive has fewer."""
    names: list[str] = []
    with reading(str(path), "damaged or truncated archive"), path.open("rb") as file:
        compressed = file.read(6).startswith(tuple(archives.COMPRESSED))
    with (
        reading(str(path), "damaged or truncated archive") if compressed else contextlib.suppress(Exception),
        tarfile.open(path) as archive,
    ):
        names += (member.name for member, _ in zip(archive, range(20), strict=False))
    return names


def version(names: Iterable[str]) -> str | None:
    """The version of CIFAR to which files of these names belong, or None."""
    bases = {PurePosixPath(name).name for name in names}
    for kind, (splits, meta, _) in VERSIONS.items():
        if meta in bases and bases & set().union(*splits.values()):
            return kind
    return None


def cifar(path: Path, split: str | None, kind: str) -> ArraySource:
    """Reads one split of an archive or a folder. Raises UserError, naming the file, when one is missing or damaged."""
    splits, meta, label_bytes = VERSIONS[kind]
    chosen = pick_split(str(path), split, sorted(splits))
    found, read = _opened(path)
    parts = _by_base(found, {meta, *splits[chosen]})
    payloads = {base: read(entry) for base, entry in zip(parts, found.take(parts.values()), strict=True)}
    others = _by_base(found, set().union(*splits.values())).values()
    missing = [file for file in splits[chosen] if file not in payloads]
    if missing:
        raise UserError(f"{path}: {kind} without {missing[0]}")
    images, labels = [], []
    for file in splits[chosen]:
        with reading(f"{path}: {file}"):
            parse = _unpickled if label_bytes is None else _binary
            pixels, numbers = parse(payloads[file], label_bytes or 0)
        images.append(pixels)
        labels.append(numbers)
    with reading(f"{path}: {meta}"):
        classes = _class_names(payloads.get(meta), label_bytes is None)
    return ArraySource(
        kind.rsplit(" ", 1)[0],
        str(path),
        np.concatenate(images).reshape(-1, 3, 32, 32),
        np.concatenate(labels),
        classes,
        prefix=f"{chosen}/",
        ignored=found.ignored(set(parts.values()), others),
    )


def _opened(path: Path) -> tuple[Listing, Callable[[Entry], bytes]]:
    """The listing of a folder or a (possibly compressed) archive, and a function that reads the bytes of an entry."""
    if path.is_dir():
        return listing.of_folder(path), lambda entry: (path / entry.place).read_bytes()
    with reading(str(path), "damaged or truncated archive"):
        raw = path.read_bytes()
        unpack = next((unpack for magic, unpack in UNPACK.items() if raw.startswith(magic)), bytes)
        raw = unpack(raw)
    return archives.of_tar(path, io.BytesIO(raw)), lambda entry: raw[entry.place[0] : sum(entry.place)]


def _by_base(found: Listing, wanted: set[str]) -> dict[str, str]:
    """File name -> its path in the listing. Raises UserError when several files have the same name."""
    paths: dict[str, str] = {}
    for path in found.find(lambda name: PurePosixPath(name).name in wanted):
        base = PurePosixPath(path).name
        if base in paths:
            raise UserError(f"{found.where}: holds {paths[base]} and {path}: keep one of them")
        paths[base] = path
    return paths


def _binary(raw: bytes, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    width = label_bytes + PIXELS
    if not raw or len(raw) % width:
        raise ValueError(f"{len(raw)} bytes are not a whole number of images")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)


def _unpickled(raw: bytes, _: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _load(raw)
    pixels = np.asarray(batch[b"data"])
    numbers = np.asarray(batch[b"fine_labels"] if b"fine_labels" in batch else batch[b"labels"])
    if pixels.dtype != np.uint8 or pixels.shape != (len(numbers), PIXELS):
        raise ValueError(f"{pixels.dtype} {list(pixels.shape)} and {len(numbers)} labels")
    return pixels, numbers.astype(np.int64)


def _class_names(raw: bytes | None, python: bool) -> tuple[str, ...]:
    if raw is None:
        return ()
    if not python:
        return tuple(raw.decode().split())
    meta = _load(raw)
    return tuple(bytes(name).decode() for name in meta.get(b"fine_label_names") or meta.get(b"label_names") or ())


class _Arrays(pickle.Unpickler):
    """Unpickles only arrays and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        short = module.rsplit(".", 1)[-1] if module.startswith(("numpy.core.", "numpy._core.")) else module
        if (short, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CIFAR file does")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _load(raw: bytes) -> dict[bytes, Any]:
    value: dict[Any, Any] = _Arrays(io.BytesIO(raw), encoding="bytes").load()
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}
