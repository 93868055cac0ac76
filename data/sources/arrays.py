"""Sets that are arrays already: built-in words, IDX, `.npy` and `.npz` files.

    a word or a path  ->  ArraySource: uint8 [N, C, H, W] or float32 [N, D], with labels

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError, reading
from entroloop.data.sources.base import ArraySource, pick_split
from entroloop.data.sources.listing import OTHER_KIND, Listing, spelled

# --- words --------------------------------------------------------------------------------------------------------


def digits() -> ArraySource:
    """1,797 handwritten digits, 8 x 8 grey (scikit-learn's embedded set); 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return ArraySource("digits", "digits", images, labels.astype(np.int64), tuple("0123456789"), prefix="digits/")


def mixture() -> ArraySource:
    """10,000 points of a two-dimensional mixture: eight Gaussians (deviation 0.12) on a circle of radius sqrt(2).

    Each coordinate has a mean of about 0 and a variance of about 1; the label is the Gaussian a point was drawn from.
    """
    random = np.random.Generator(np.random.Philox(20250916))
    labels = random.integers(0, 8, 10_000)
    angles = labels * (np.pi / 4)
    centres = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = centres + 0.12 * random.standard_normal((10_000, 2))
    # Rounded far above the last bit, in which mathematical libraries differ.
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
    """The array in an IDX file of unsigned bytes, gzipped or not. Raises UserError naming a damaged file."""
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
    """IDX images with their labels, as MNIST has them, directly in a folder."""
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
    """One IDX file of images, and the file of labels where that is beside it."""
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
    """By the first such word of a name: `t10k-images…`, `emnist-letters-test-images…`."""
    match = re.search(r"(?<![a-z])(train|t10k|test|val)", name.lower())
    return "train" if match is None else {"t10k": "test"}.get(match[1], match[1])


def _labels_of(images: str) -> str | None:
    """The name, in small letters and without `.gz`, that the labels of a file of images have."""
    name = _unzipped(images).replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    return name if name != _unzipped(images) else None


# --- NumPy --------------------------------------------------------------------------------------------------------

SAMPLES = ("images", "samples", "x", "data", "features", "arr_0")
LABELS = ("labels", "label", "y", "targets", "classes", "arr_1")


def numpy_file(path: Path) -> ArraySource:
    """A `.npy` array, or an `.npz` with samples (`images`, `x`, …) and maybe labels (`labels`, `y`, …)."""
    prefix = f"{spelled(os.fsencode(path.stem))}/"
    with reading(str(path), "damaged, or not an array of numbers"):
        found: Any = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(found, np.ndarray):
            if isinstance(found, np.memmap) and found.offset + found.nbytes < path.stat().st_size:
                raise UserError(f"{path}: goes on after its array: keep several arrays in an .npz, or in a file each")
            return ArraySource("NumPy array", str(path), as_samples(found, str(path)), None, prefix=prefix)
        names = {name.lower(): name for name in found.files}
        key = next((names[name] for name in SAMPLES if name in names), None)
        if key is None and len(names) == 1:
            key = found.files[0]
        if key is None:
            raise UserError(f"{path}: holds {', '.join(found.files)}: name the samples one of {', '.join(SAMPLES)}")
        array = as_samples(found[key], f"{path}: {key}")
        label_key = next((names[name] for name in LABELS if name in names and names[name] != key), None)
        labels = None if label_key is None else as_labels(found[label_key], len(array), f"{path}: {label_key}")
        ignored = {f"{prefix}{name}": OTHER_KIND for name in found.files if name not in (key, label_key)}
    return ArraySource("NumPy arrays", str(path), array, labels, prefix=prefix, ignored=ignored)


def as_samples(array: NDArray[Any], where: str) -> NDArray[Any]:
    """uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] -> uint8 [N, C, H, W]; numbers [N, D] -> float32 [N, D]."""
    if array.ndim == 2 and array.dtype.kind in "fiu":
        return array.astype(np.float32, copy=False)
    if array.ndim in (3, 4) and array.dtype != np.uint8:
        raise UserError(f"{where}: images must be uint8 from 0 to 255, these are {array.dtype}")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise UserError(
        f"{where}: {array.dtype} {list(array.shape)} is neither images (uint8 [N, H, W], [N, H, W, C], [N, C, H, W] "
        "with C = 1 or 3) nor vectors (numbers [N, D])"
    )


def as_labels(array: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Whole numbers of at least 0, one a sample: int64 [N]."""
    labels = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.shape != (count,):
        raise UserError(f"{where}: labels of shape {list(array.shape)} for {count} samples")
    if labels.dtype.kind not in "iuf" or (labels != np.floor(labels)).any() or (labels < 0).any():
        raise UserError(f"{where}: labels must be whole numbers from 0 up")
    return labels.astype(np.int64)
