"""Rows stored as arrays: `.npy` files, `.npz` archives, sealed feature folders and sealed sets of vectors.

    a path (+ the key of an array)  ->  open_rows  ->  Rows: vectors [N, D], or images uint8 [N, C, H, W]

`import`, `measure`, `select` and `entropy` all use this module, so each of them reads the same array from the same
file. `import` and `measure` open sealed sets themselves, because these may also hold images. Without a key, an archive
or feature folder that holds several arrays of rows is refused with their names.

N rows, D numbers per vector, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.store import manifest
from entroloop.data.store.blocks import encoders_of, load_blocks
from entroloop.data.store.index import open_set

DAMAGED = "damaged, or not a NumPy file"
WHOLE = 2**24  # float32 holds every whole number up to this one
_BLOCK_BYTES = 1 << 26  # bytes per block when all values of a file are checked
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
    before = _stamp(rows.file)
    yield rows
    if _stamp(rows.file) != before:
        raise UserError(f"{path}: changed while it was read; run the command again when it is complete")


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass(frozen=True)
class Rows:
    """Rows as they are stored, memory-mapped if the file allows it.

    path    the file or sealed folder
    key     name of the array in an archive, or of the encoder; None for a `.npy` file
    parts   arrays [n, D] of numbers, or uint8 [n, C, H, W]; concatenated they are the N rows
    beside  headers of the other arrays in the archive, by name
    """

    path: Path
    key: str | None
    parts: Sequence[NDArray[Any]]
    beside: Mapping[str, Header] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, rows: int | slice | NDArray[np.int64]) -> NDArray[Any]:
        """One row, a slice or some ids, in the machine's byte order.

        A slice of a single part stays memory-mapped if no value needs converting. Integers other than uint8 become
        float32; `check` must have passed before.
        """
        if len(self.parts) == 1:
            return _native(self.parts[0][rows])
        ids = np.arange(len(self))[rows]
        out = np.empty((ids.size, *self.shape), self.parts[0].dtype)
        first = 0
        for part in self.parts:
            mine = (ids.reshape(-1) >= first) & (ids.reshape(-1) < first + len(part))
            out[mine] = part[ids.reshape(-1)[mine] - first]
            first += len(part)
        return _native(out.reshape(*ids.shape, *self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: (D,) or (C, H, W)."""
        return self.parts[0].shape[1:]

    @property
    def where(self) -> str:
        """The file and the name of the array in it, for messages."""
        return str(self.path) if self.key is None else f"{self.path}: {self.key}"

    @property
    def file(self) -> Path:
        """The file that changes when the rows change: the file itself, or a feature folder's manifest."""
        return self.path / manifest.MANIFEST if self.path.is_dir() else self.path

    def about(self) -> dict[str, Any]:
        """Facts to record: the file's name and SHA-256 (for a folder, its manifest's), key, shape and dtype."""
        return {
            "file": self.path.name,
            "key": self.key,
            "sha256": files.sha256(self.file),
            "shape": [len(self), *self.shape],
            "dtype": str(self.parts[0].dtype),
        }

    def problem(self, rows: slice = slice(None)) -> str | None:
        """One line on the first row of a slice that holds an unusable value; None if all values are usable.

        Unusable values are NaN, infinity, float64 beyond the range of float32, and integers beyond ±2^24, above which
        float32 does not hold every integer. Reads one block at a time.
        """
        if self.parts[0].dtype == np.uint8:
            return None
        limit = _limit(self.parts[0].dtype)
        for first, block in self.blocks(rows, _BLOCK_BYTES):
            if not (-limit <= block.min().item() and block.max().item() <= limit):
                bad = int(np.argmin(((block >= -limit) & (block <= limit)).all(1)))
                return f"{self.where}: row {first + bad} holds {_unusable(block[bad])}"
        return None

    def blocks(self, rows: slice = slice(None), size: int = _BLOCK_BYTES) -> Iterator[tuple[int, NDArray[Any]]]:
        """The rows of a slice as stored, about `size` bytes at a time, each block with the number of its first row."""
        start, stop, _ = rows.indices(len(self))
        first = 0
        for part in self.parts:
            step = max(1, size // max(1, part[:1].nbytes))
            for at in range(max(start - first, 0), min(stop - first, len(part)), step):
                yield first + at, part[at : min(at + step, stop - first)]
            first += len(part)

    def check(self) -> None:
        """Raises UserError, naming the first row that holds an unusable value, when there is one. See `problem`."""
        if message := self.problem():
            raise UserError(message)

    def vectors(self) -> Rows:
        """These rows. Raises UserError when they are images."""
        if len(self.shape) != 1:
            raise UserError(f"{self.where}: holds images, but vectors [N, D] are needed: encode the images first")
        return self

    def labels_key(self) -> str | None:
        """The name of the labels beside the rows: the array of N integers, [N] or [N, 1]; None if there is none.

        Raises UserError when several arrays could be the labels, and when the only one has another length.
        """
        shapes = {name: header.shape for name, header in self.beside.items() if header.dtype.kind in "iu"}
        fitting = [name for name, shape in shapes.items() if shape in ((len(self),), (len(self), 1))]
        if len(fitting) > 1:
            names = " and ".join(fitting)
            raise UserError(f"{self.path}: {names} could all be the labels: keep one, or give --no-labels")
        other = [name for name, shape in shapes.items() if len(shape) == 1]
        if not fitting and other and not any(map(_holds_rows, self.beside.values())):
            name, count = other[0], shapes[other[0]][0]
            raise UserError(f"{self.path}: {name}: {count} labels for {len(self)} rows: fix them, or give --no-labels")
        return fitting[0] if fitting else None

    def labels(self, key: str) -> NDArray[np.int64]:
        """The labels in the array of this name: int64 [N]. Raises UserError when the array is damaged."""
        with reading(str(self.path), DAMAGED), zipfile.ZipFile(self.path) as archive:
            return _load(self.path, archive, key, self.beside[key]).reshape(-1).astype(np.int64)


def read_integers(path: Path, count: int) -> NDArray[np.int64]:
    """The integers of a `.npy` file, one per row: int64 [count]. Raises UserError, naming it, for other contents."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not path.stat().st_size:
        raise UserError(f"{path}: holds no rows: the file is empty")
    with reading(str(path), DAMAGED), path.open("rb") as file:
        header = _header(file)
    if header.shape != (count,) or header.dtype.kind not in "iu":
        raise UserError(
            f"{path}: must hold {count} integers, one per row, holds {header.dtype} of shape {list(header.shape)}"
        )
    return _mapped(path, header, path.stat().st_size).astype(np.int64)


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
        header = _header(file)
    if key is not None:
        raise UserError(f"--key {key}: {path} holds a single array, which has no name")
    _check_header(str(path), header)
    return Rows(path, None, [_as_rows(str(path), _mapped(path, header, path.stat().st_size))])


def _of_archive(path: Path, key: str | None) -> Rows:
    with reading(str(path), DAMAGED), zipfile.ZipFile(path) as archive:
        headers = {}
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in headers:
                raise UserError(f"{path}: holds two arrays called {name}")
            if name != entry.filename:
                with archive.open(entry) as member:
                    headers[name] = _header(member)
    candidates = [name for name, header in headers.items() if _holds_rows(header)]
    if not candidates and key is None:
        told = ", ".join(f"{name} {header.dtype} {list(header.shape)}" for name, header in headers.items())
        raise UserError(
            f"{path}: holds no rows: no array of numbers with two or more dimensions ({told or 'no arrays at all'})"
        )
    name = _choose(path, candidates if key is None else list(headers), key)
    header = headers.pop(name)
    _check_header(f"{path}: {name}", header)
    with reading(str(path), DAMAGED), zipfile.ZipFile(path) as archive:
        array = _load(path, archive, name, header)
    return Rows(path, name, [_as_rows(f"{path}: {name}", array)], headers)


def _choose(path: Path, names: Sequence[str], key: str | None) -> str:
    if key is not None and key not in names:
        raise UserError(f"--key {key}: {path} holds no such array: give one of {', '.join(names)}")
    if key is None and len(names) > 1:
        raise UserError(f"{path}: holds several arrays of rows: choose one with --key: {', '.join(names)}")
    return names[0] if key is None else key


# --- NumPy's format -----------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """The facts in the header of a `.npy` file, and the number of bytes before the data."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize


def _header(file: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return Header(*read(file), file.tell())


def _holds_rows(header: Header) -> bool:
    return len(header.shape) >= 2 and header.dtype.kind in "fiu"


def _check_header(where: str, header: Header) -> None:
    if header.dtype.hasobject:
        raise UserError(f"{where}: holds Python objects, not numbers")
    if header.dtype.kind not in "fiu" or header.dtype.itemsize > 8:
        raise UserError(f"{where}: holds {header.dtype}: give integers, or floats of at most 64 bits")


def _mapped(path: Path, header: Header, end: int, start: int = 0) -> NDArray[Any]:
    """Maps the array whose header begins at byte `start`. The data must end at byte `end`."""
    found = end - start - header.offset
    if found > header.size:
        raise UserError(f"{path}: goes on after its array: keep several arrays in an .npz, or one per file")
    if found < header.size:
        raise UserError(f"{path}: damaged: holds {found} bytes of data, but its header says {header.size}")
    if not header.size:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", start + header.offset, header.shape, "F" if header.fortran else "C")


def _load(path: Path, archive: zipfile.ZipFile, name: str, header: Header) -> NDArray[Any]:
    """An array of an archive: memory-mapped if the archive stores it uncompressed, else read into memory."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as member:  # zipfile checks the CRC-32 when the whole member has been read
        if entry.compress_type != zipfile.ZIP_STORED:
            if entry.file_size != header.offset + header.size:
                raise UserError(f"{path}: {name}: damaged: its header does not fit its {entry.file_size} bytes")
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            return array
        while member.read(1 << 20):
            pass
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        start = entry.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
    return _mapped(path, header, start + entry.file_size, start)


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


def _native(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f" or array.dtype == np.uint8:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.astype(np.float32)


def _limit(dtype: np.dtype[Any]) -> float:
    return WHOLE if dtype.kind in "iu" else float(np.finfo(np.float32).max)


def fault(row: NDArray[Any]) -> str | None:
    """The values of one vector, [D], that float32 does not hold, in words; None if it holds all values."""
    limit = _limit(row.dtype)
    return None if -limit <= row.min().item() and row.max().item() <= limit else _unusable(row)


def _unusable(row: NDArray[Any]) -> str:
    if row.dtype.kind in "iu":
        return f"integers beyond {WHOLE:,}, which float32 does not hold exactly: scale them, or store float64"
    if not np.isfinite(row).all():
        return "NaN or infinity"
    return "numbers beyond the range of float32 (±3.4e38)"
