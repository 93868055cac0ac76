"""Opens rows that are stored as arrays: `.npy` files, `.npz` archives, sealed feature folders and sets of vectors.

    a path (+ the key of an array)  ->  open_rows  ->  Rows: vectors [N, D], or images uint8 [N, C, H, W]

`import`, `measure`, `select` and `entropy` all use this module, so each of them reads the same array from the same
file. `import` and `measure` open sealed sets themselves, because these may also hold images. Without a key, an archive
or feature folder that holds several arrays of rows is refused with their names.

N rows, D numbers per vector, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.sources.listing import stamp
from entroloop.data.sources.npy import DAMAGED, Header, load, mapped, read_header
from entroloop.data.sources.rows import Rows
from entroloop.data.store import manifest
from entroloop.data.store.blocks import encoders_of, load_blocks
from entroloop.data.store.index import open_set

_KINDS = "vectors (numbers [N, D]) or images (uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3)"


def is_rows(path: Path) -> bool:
    """Whether `path` is a kind of file or folder that `open_rows` reads, be it complete or damaged."""
    if path.is_dir():
        return _is_features(path)
    if path.suffix.lower() in (".npy", ".npz"):
        return True
    if not path.is_file():  # a read from a pipe or device may never end
        return False
    with reading(str(path), DAMAGED), path.open("rb") as file:
        return file.read(6) == b"\x93NUMPY"


def _is_features(folder: Path) -> bool:
    return manifest.is_sealed(folder) and manifest.read(folder).kind == "features"


def keys_of(paths: Sequence[Path], keys: Sequence[str]) -> list[str | None]:
    """The key of each path. Archives and folders share a single key, or take several keys in order. Others have None.

    Raises UserError when there are several keys, but not one for each archive or folder.
    """
    named = [_is_features(path) if path.is_dir() else path.suffix.lower() == ".npz" for path in paths]
    if len(keys) <= 1:
        return [keys[0] if keys and (own or not any(named)) else None for own in named]
    if len(keys) != sum(named):
        raise UserError(f"--key {' '.join(keys)}: give one key, or one for each of {sum(named)} sets with named arrays")
    each = iter(keys)
    return [next(each) if own else None for own in named]


def open_rows(path: Path, key: str | None = None) -> Rows:
    """The rows of a file, feature folder or sealed set of vectors. `Rows.check` checks values, not this function.

    key  name of an array in an archive, or of an encoder of a feature folder; None: the only array that holds rows

    Raises UserError, naming the path, when the path is missing, damaged or of another kind, when it holds several
    arrays of rows and `key` is None, when it has no array of this key, and when the array is empty or holds neither
    vectors nor images.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path}: is a device or pipe: give a file or folder")
    if path.is_dir():
        return _of_features(path, key) if not manifest.is_sealed(path) or _is_features(path) else _of_set(path, key)
    with reading(str(path), DAMAGED), path.open("rb") as file:
        head = file.read(6)
    if not head:
        raise UserError(f"{path}: holds no rows: the file is empty")
    return _of_archive(path, key) if head[:2] == b"PK" else _of_array(path, key)


@contextlib.contextmanager
def opened(path: Path, key: str | None = None) -> Iterator[Rows]:
    """`open_rows` as a context. Raises UserError at its end if the file has changed since its beginning."""
    rows = open_rows(path, key)
    before = stamp(str(rows.file))
    yield rows
    if stamp(str(rows.file)) != before:
        raise UserError(f"{path}: changed while it was read; run the command again when it is complete")


def read_integers(path: Path, count: int) -> NDArray[np.int64]:
    """The integers of a `.npy` file, one per row: int64 [count]. Raises UserError, naming it, for other contents."""
    files.check_array(path)
    if not path.stat().st_size:
        raise UserError(f"{path}: holds no rows: the file is empty")
    with reading(str(path), DAMAGED), path.open("rb") as file:
        header = read_header(file)
    if header.shape != (count,) or header.dtype.kind not in "iu":
        raise UserError(
            f"{path}: must hold {count} integers, one per row, holds {header.dtype} of shape {list(header.shape)}"
        )
    return mapped(path, header, path.stat().st_size).astype(np.int64)


# --- the three kinds ----------------------------------------------------------------------------------------------


def _of_features(folder: Path, key: str | None) -> Rows:
    if not manifest.is_sealed(folder):
        raise UserError(
            f"{folder}: not a sealed folder of features or vectors (no {manifest.MANIFEST}); give a .npy or .npz file"
        )
    name = _choose(folder, encoders_of(folder), key)
    return Rows(folder, name, [_as_rows(f"{folder}: {name}", block) for block in load_blocks(folder, name)])


def _of_set(folder: Path, key: str | None) -> Rows:
    found = open_set(folder)
    if key is not None:
        raise UserError(f"--key {key}: {folder} holds a single array, which has no name")
    if len(found.shape) != 1:
        raise UserError(f"{folder}: holds images, but vectors [N, D] are needed: encode the images first")
    return Rows(folder, None, [found.all()])


def _of_array(path: Path, key: str | None) -> Rows:
    with reading(str(path), DAMAGED), path.open("rb") as file:
        header = read_header(file)
    if key is not None:
        raise UserError(f"--key {key}: {path} holds a single array, which has no name")
    _check_header(str(path), header)
    return Rows(path, None, [_as_rows(str(path), mapped(path, header, path.stat().st_size))])


def _of_archive(path: Path, key: str | None) -> Rows:
    with reading(str(path), DAMAGED), zipfile.ZipFile(path) as archive:
        headers = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in headers:
                raise UserError(f"{path}: holds two arrays called {name}")
            if name != entry.filename:
                with archive.open(entry) as member:
                    headers[name] = read_header(member)
    candidates = [name for name, header in headers.items() if header.holds_rows]
    if not candidates and key is None:
        told = ", ".join(f"{name} {header.dtype} {list(header.shape)}" for name, header in headers.items())
        raise UserError(
            f"{path}: holds no rows: no array of numbers with two or more dimensions ({told or 'no arrays at all'})"
        )
    name = _choose(path, candidates if key is None else list(headers), key)
    header = headers.pop(name)
    _check_header(f"{path}: {name}", header)
    with reading(str(path), DAMAGED), zipfile.ZipFile(path) as archive:
        array = load(path, archive, name, header)
    return Rows(path, name, [_as_rows(f"{path}: {name}", array)], headers)


def _choose(path: Path, names: Sequence[str], key: str | None) -> str:
    if key is not None and key not in names:
        raise UserError(f"--key {key}: {path} holds no such array: give one of {', '.join(names)}")
    if key is None and len(names) > 1:
        raise UserError(f"{path}: holds several arrays of rows: choose one with --key: {', '.join(names)}")
    return names[0] if key is None else key


def _check_header(where: str, header: Header) -> None:
    if header.dtype.hasobject:
        raise UserError(f"{where}: holds Python objects, not numbers")
    if header.dtype.kind not in "fiu" or header.dtype.itemsize > 8:
        raise UserError(f"{where}: holds {header.dtype}: give integers, or floats of at most 64 bits")


def _as_rows(where: str, array: NDArray[Any]) -> NDArray[Any]:
    """Numbers [N, D] unchanged; uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] -> uint8 [N, C, H, W]."""
    if array.ndim in (3, 4) and array.dtype != np.uint8:
        raise UserError(f"{where}: images must be uint8 from 0 to 255, these are {array.dtype}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 2 and not (array.ndim == 4 and array.shape[1] in (1, 3)):
        raise UserError(f"{where}: holds {array.dtype} of shape {list(array.shape)}; expected {_KINDS}")
    if not len(array):
        raise UserError(f"{where}: holds no rows")
    if not array.size:
        raise UserError(f"{where}: holds rows without numbers, shape {list(array.shape)}")
    return array
