"""IDX files, as MNIST is published: images, and labels in a file beside them.

    path  ->  ArraySource: uint8 [N, C, H, W], with labels

N images, C channels, H height, W width.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError, reading
from entroloop.data.sources.base import ArraySource, pick_split
from entroloop.data.sources.given import Given
from entroloop.data.sources.listing import Listing


def recognise(given: Given) -> ArraySource | None:
    """Files directly in a folder, by their names; one file by its name or its first bytes."""
    if any("/" not in name and is_idx(name) for name in given.found.entries):
        return idx_folder(given.found, given.split)
    if not given.is_folder and (given.head[:3] == b"\0\0\x08" or is_idx(given.path.name)):
        return idx_file(given.path, given.split)
    return None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped or not. Raises UserError, naming the file, when damaged."""
    with reading(str(path), "damaged or truncated"):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4:
        raise UserError(f"{path}: not an IDX file of unsigned bytes")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4)) if len(raw) >= 4 + 4 * raw[3] else (0,)
    size = len(raw) - 4 - 4 * raw[3]
    if size != np.prod(shape):
        raise UserError(f"{path}: truncated: {size} bytes of data, but its header says {' x '.join(map(str, shape))}")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def is_idx(name: str) -> bool:
    return _unzipped(name).endswith(("-ubyte", ".idx3", ".idx1", ".idx4"))


def _unzipped(name: str) -> str:
    return name.lower().removesuffix(".gz")


def idx_folder(found: Listing, split: str | None) -> ArraySource:
    """IDX images and labels directly in a folder, as MNIST is published."""
    listed = found.find(lambda name: "/" not in name and is_idx(name))
    copies = [name for name in listed if _unzipped(name) != name.lower() and name[:-3] in listed]
    files = [name for name in listed if name not in copies]
    splits: dict[str, list[str]] = {}
    for name in files:
        if not _of_labels(name):
            splits.setdefault(_idx_split(name), []).append(name)
    if not splits:
        raise UserError(f"{found.where}: holds IDX labels but no images (such as train-images-idx3-ubyte.gz)")
    chosen = pick_split(found.where, split, sorted(splits))
    if len(splits[chosen]) > 1:
        raise UserError(f"{found.where}: {' and '.join(splits[chosen])} are both images of {chosen}: give one file")
    name = splits[chosen][0]
    labels = next((other for other in files if _unzipped(other) == _labels_of(name)), None)
    source = idx(found.path(name), None if labels is None else found.path(labels), chosen)
    source.ignored = found.ignored({name, labels or name}, files) | dict.fromkeys(copies, "a compressed copy")
    return source


def idx_file(path: Path, split: str | None) -> ArraySource:
    """One IDX file of images, and the file of labels if it is beside it."""
    if _of_labels(path.name):
        raise UserError(f"{path}: holds IDX labels but no images (such as train-images-idx3-ubyte.gz)")
    chosen = pick_split(str(path), split, [_idx_split(path.name)])
    beside = _labels_of(path.name)
    labels = sorted(other for other in path.parent.iterdir() if _unzipped(other.name) == beside)
    return idx(path, labels[0] if labels else None, chosen)


def idx(file: Path, labels_file: Path | None, split: str) -> ArraySource:
    array = read_idx(file)
    if array.ndim not in (3, 4):
        raise UserError(f"{file}: holds {array.ndim} dimensions, images have 3 (N x H x W) or 4 (N x H x W x C)")
    array = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    labels = None
    if labels_file is not None:
        labels = read_idx(labels_file).astype(np.int64)
        if labels.shape != (len(array),):
            raise UserError(f"{labels_file}: {len(labels)} labels, but {file.name} holds {len(array)} images")
    return ArraySource("IDX", str(file), array, labels, prefix=f"{split}/")


def _of_labels(name: str) -> bool:
    return "labels" in name.lower() or "idx1" in name.lower()


def _idx_split(name: str) -> str:
    """The split by the first such word in a name: `t10k-images…` and `emnist-letters-test-images…` are `test`."""
    match = re.search(r"(?<![a-z])(train|t10k|test|val)", name.lower())
    return "train" if match is None else {"t10k": "test"}.get(match[1], match[1])


def _labels_of(images: str) -> str | None:
    """The file name, in lower case and without `.gz`, of the labels that belong to a file of images."""
    name = _unzipped(images).replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    return name if name != _unzipped(images) else None
