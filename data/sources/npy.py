"""NumPy's format: headers of arrays, and arrays of files and archives, memory-mapped where possible.

a file, or a member of an archive  ->  read_header  ->  Header  ->  mapped | load  ->  array
"""

from __future__ import annotations

import math
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError

DAMAGED = "damaged, or not a NumPy file"


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

    @property
    def holds_rows(self) -> bool:
        """Whether the array may be one of rows: of two or more dimensions, and of numbers."""
        return len(self.shape) >= 2 and self.dtype.kind in "fiu"


def read_header(file: IO[bytes]) -> Header:
    """The header that begins at the file's position. Raises ValueError when there is none."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return Header(*read(file), file.tell())


def mapped(path: Path, header: Header, end: int, start: int = 0) -> NDArray[Any]:
    """Maps the array whose header begins at byte `start`. Raises UserError unless its data end at byte `end`."""
    found = end - start - header.offset
    if found > header.size:
        raise UserError(f"{path}: goes on after its array: keep several arrays in an .npz, or one per file")
    if found < header.size:
        raise UserError(f"{path}: damaged: holds {found} bytes of data, but its header says {header.size}")
    if not header.size:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", start + header.offset, header.shape, "F" if header.fortran else "C")


def load(path: Path, archive: zipfile.ZipFile, name: str, header: Header) -> NDArray[Any]:
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
    return mapped(path, header, start + entry.file_size, start)


def write_archive(file: IO[bytes], array: Path, labels: NDArray[np.int64] | None) -> None:
    """An .npz file of `arr_0`, which is the `.npy` file `array`, and `labels`."""
    with zipfile.ZipFile(file, "w") as archive:
        with array.open("rb") as mapped, archive.open("arr_0.npy", "w", force_zip64=True) as member:
            shutil.copyfileobj(mapped, member, 1 << 20)
        if labels is not None:
            with archive.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)
