"""Sources that are arrays: built-in sets, IDX files, and the files that `rows` reads.

    a name or a path  ->  ArraySource: uint8 [N, C, H, W] or float32 [N, D], with labels

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError, reading
from entroloop.data.sources.base import ArraySource, pick_split
from entroloop.data.sources.listing import OTHER_KIND, Listing, spelled
from entroloop.data.sources.rows import open_rows

# --- built-in sets ------------------------------------------------------------------------------------------------


def digits() -> ArraySource:
    """1,797 handwritten digits, 8 x 8 grey (scikit-learn's embedded set), scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return ArraySource("digits", "digits", images, labels.astype(np.int64), tuple("0123456789"), prefix="digits/")


def mixture() -> ArraySource:
    """10,000 points of a two-dimensional mixture: eight Gaussians (deviation 0.12) on a circle of radius sqrt(2).

    Each coordinate has mean about 0 and variance about 1. The label is the number of the Gaussian that a point is from.
    """
    random = np.random.Generator(np.random.Philox(20250916))
    labels = random.integers(0, 8, 10_000)
    angles = labels * (np.pi / 4)
    centres = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = centres + 0.12 * random.standard_normal((10_000, 2))
    # Mathematical libraries may differ in the last bit. Rounding to five decimals removes the difference.
    return ArraySource("mixture", "mixture", points.round(5).astype(np.float32), labels, prefix="mixture/")


def tabular(name: str) -> ArraySource:
    """One of scikit-learn's embedded tables of measurements, each column standardised: float32 [N, D] with labels."""
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")()
    x = (table.data - table.data.mean(0)) / table.data.std(0)
    classes = tuple(str(c) for c in table.target_names)
    return ArraySource(name, name, x.astype(np.float32), table.target.astype(np.int64), classes, prefix=f"{name}/")


wine = functools.partial(tabular, "wine")
breast_cancer = functools.partial(tabular, "breast_cancer")
iris = functools.partial(tabular, "iris")

# --- IDX ----------------------------------------------------------------------------------------------------------


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
    labels = None
    if beside is not None:
        names = sorted(name for name in os.listdir(path.parent) if _unzipped(name) == beside)
        labels = path.parent / names[0] if names else None
    return idx(path, labels, chosen)


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


# --- rows ---------------------------------------------------------------------------------------------------------


def stored(path: Path, key: str | None, labels: bool) -> ArraySource:
    """The rows that `open_rows` reads and, if `labels`, the labels stored beside them. Checks all values."""
    rows = open_rows(path, key)
    rows.check()
    name = rows.labels_key() if labels else None
    prefix = f"{spelled(os.fsencode(path.stem))}/"
    ignored = {f"{prefix}{other}": OTHER_KIND for other in rows.beside if other != name}
    kind = "features" if path.is_dir() else "NumPy array"
    beside = None if name is None else rows.labels(name)
    return ArraySource(kind, str(path), rows, beside, prefix=prefix, ignored=ignored)
