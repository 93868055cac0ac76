"""Parquet tables with a column of images, as on the Hugging Face hub.

    files  ->  ImageSource: names, labels, and one payload of bytes per sample

Needs pyarrow (`pip install entroloop[parquet]`). Reads one row group at a time.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError, reading
from entroloop.data.sources.base import MISSING, ImageSource
from entroloop.data.sources.containers import of_files
from entroloop.data.sources.given import Given
from entroloop.data.sources.listing import spelled, stamp

IMAGES = ("image", "img", "images", "png", "jpg", "jpeg", "webp")
LABELS = ("label", "labels", "fine_label", "cls", "class", "target")


@functools.lru_cache(maxsize=2)
def _column(path: str, stamp: tuple[int, ...], group: int, column: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(0)


@dataclass
class ParquetPayload:
    """Reads images from row groups.

    column  name of the column of images
    groups  the row groups of all files in order: (path, stamp of the file, number of the group)
    starts  number of the first row of each group
    """

    column: str
    groups: Sequence[tuple[str, tuple[int, ...], int]]
    starts: Sequence[int]

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        number = bisect.bisect_right(self.starts, row) - 1
        value = _column(*self.groups[number], self.column)[row - self.starts[number]].as_py()
        return bytes_of(value)


def bytes_of(value: Any) -> bytes:
    """The encoded image in a value of a table: bytes, or a mapping with `bytes`. Raises ValueError for any other."""
    payload = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(payload, bytes):
        raise ValueError("the table holds no bytes for it")
    return payload


def labels_in(column: Any) -> NDArray[np.int64]:
    """The labels in a column of pyarrow, MISSING for null: int64 [N]."""
    found: NDArray[np.int64] = column.cast("int64").fill_null(MISSING).to_numpy().astype(np.int64)
    return found


def recognise(given: Given) -> ImageSource | None:
    """A table by its first bytes, or all tables of a folder by their names."""
    if given.is_folder:
        return of_files(given, lambda name: name.lower().endswith(".parquet"), parquet_images)
    if given.head[:4] != b"PAR1":
        return None
    given.no_splits()
    return parquet_images([(spelled(os.fsencode(given.path.name)), given.path)], given.path)


def parquet_images(files: Sequence[tuple[str, Path]], where: Path) -> ImageSource:
    """Images in Parquet files, given as (name, path), in the order of the files and their rows.

    Raises UserError when pyarrow is not installed, when a file is damaged or has no column of images, and when files
    differ in their columns or classes.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{where}: reading Parquet needs pyarrow: pip install 'entroloop[parquet]'") from error
    names: list[str] = []
    labels: list[NDArray[np.int64]] = []
    groups: list[tuple[str, tuple[int, ...], int]] = []
    sizes: list[int] = []
    first: tuple[str, str | None, tuple[str, ...]] | None = None
    for name, path in files:
        with reading(str(path), "damaged or not Parquet"):
            file = pyarrow.parquet.ParquetFile(path)
            image, label = _columns(file.schema_arrow, path)
            if label is not None:
                labels.append(labels_in(file.read(columns=[label]).column(0)))
        columns = (image, label, _class_names(file.schema_arrow, label))
        first = first or columns
        if columns != first:
            raise UserError(f"{path}: has other columns or classes than {files[0][1].name}")
        groups += [(str(path), stamp(str(path)), i) for i in range(file.num_row_groups)]
        sizes += [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        names += [f"{name}/{row}" for row in range(file.metadata.num_rows)]
    starts = [0, *itertools.accumulate(sizes)]
    found = np.concatenate(labels) if labels else None
    return ImageSource("Parquet", str(where), names, ParquetPayload(image, groups, starts[:-1]), found, columns[2])


def _columns(schema: Any, path: Path) -> tuple[str, str | None]:
    """Names of the column of images (bytes, or a struct with bytes) and of the column of integer labels or None."""
    import pyarrow.types as types

    def of_bytes(kind: Any) -> bool:
        inner = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        return bool(types.is_binary(inner) or types.is_large_binary(inner))

    candidates = [field.name for field in schema if of_bytes(field.type)]
    named = [name for name in IMAGES if name in candidates]
    if not named and len(candidates) != 1:
        raise UserError(f"{path}: no column of images among {', '.join(schema.names)} (name it `image`)")
    whole = [field.name for field in schema if types.is_integer(field.type)]
    return (named or candidates)[0], next((name for name in LABELS if name in whole), None)


def _class_names(schema: Any, label: str | None) -> tuple[str, ...]:
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
