"""The rows of a source that a user chooses: an array or `.npy` file -> check_ids -> int64 [M], or one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.sources.npy import DAMAGED


def check_ids(ids: str | Path | ArrayLike, count: int) -> NDArray[np.int64]:
    """The ids as int64 [M], in their own order.

    ids    integers [M], or the path of a `.npy` file that holds them
    count  number of samples in the source

    Raises UserError when there are none, and when one is no integer, repeated, negative or beyond the source.
    """
    where = str(ids) if isinstance(ids, str | Path) else "ids"
    if isinstance(ids, str | Path):
        files.check_array(Path(ids))
        with Path(ids).open("rb") as file:
            head = file.read(6)
        if not head.startswith((b"\x93NUMPY", b"PK")):
            raise UserError(f"{where}: is no .npy file: give the ids as integers [M] in one, as numpy.save writes it")
        with reading(where, DAMAGED):
            array = np.load(ids, allow_pickle=False)
    else:
        array = np.asarray(ids)
    if not isinstance(array, np.ndarray):
        raise UserError(f"{where}: holds several arrays: give the ids as one .npy file")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{where}: holds {array.dtype} of shape {list(array.shape)}, ids are integers [M]")
    if not len(array):
        raise UserError(f"{where}: holds no ids")
    wrong = np.flatnonzero((array < 0) | (array >= count))
    if len(wrong):
        raise UserError(f"{where}: id {array[wrong[0]]} at position {wrong[0]}: the source has rows 0 … {count - 1}")
    found = array.astype(np.int64)
    order = np.argsort(found, kind="stable")
    twice = np.flatnonzero(np.diff(found[order]) == 0)
    if len(twice):
        first = order[twice + 1].min()
        raise UserError(f"{where}: id {found[first]} is repeated at position {first}: give each id once")
    return found
