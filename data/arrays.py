"""Sets that are arrays already: built-in words, IDX files.

    a word or a path  ->  ArraySource: uint8 [N, C, H, W] or float32 [N, D], with labels

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.sources import ArraySource, pick_split


def digits() -> ArraySource:
    """1,797 handwritten digits, 8 x 8 grey (scikit-learn's embedded set); 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return ArraySource("digits", "digits", images, labels.astype(np.int64), tuple("0123456789"), prefix="digits/")


WORDS: dict[str, Callable[[], ArraySource]] = {"digits": digits}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped or not. Raises UserError naming a damaged file."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or truncated ({error})") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4:
        raise UserError(f"{path}: not an IDX file of unsigned bytes")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4)) if len(raw) >= 4 + 4 * raw[3] else (0,)
    size = len(raw) - 4 - 4 * raw[3]
    if size != np.prod(shape):
        raise UserError(f"{path}: truncated: {size} bytes of data, but its header says {' x '.join(map(str, shape))}")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def is_idx(name: str) -> bool:
    return name.removesuffix(".gz").endswith(("-ubyte", ".idx3", ".idx1", ".idx4"))


def idx(path: Path, split: str | None, files: Sequence[str]) -> ArraySource:
    """IDX images with their labels: a folder of both (MNIST's layout), or one file of images."""
    images = [
        name for name in files if is_idx(name) and "labels" not in PurePosixPath(name).name.replace("idx1", "labels")
    ]
    if not images:
        raise UserError(f"{path}: holds IDX labels but no images (such as train-images-idx3-ubyte.gz)")
    splits = {_idx_split(name): name for name in reversed(images)}
    if len(splits) == 1:
        (only,) = splits
        chosen = only if split in (None, only) else pick_split(str(path), split, [only])
    else:
        chosen = pick_split(str(path), split, sorted(splits))
    file = path / splits[chosen] if path.is_dir() else path
    array = read_idx(file)
    if array.ndim not in (3, 4):
        raise UserError(f"{file}: holds {array.ndim} dimensions, images have 3 (N x H x W) or 4 (N x H x W x C)")
    array = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    labels_file = _labels_beside(file)
    labels = None
    if labels_file is not None:
        labels = read_idx(labels_file).astype(np.int64)
        if labels.shape != (len(array),):
            raise UserError(f"{labels_file}: {len(labels)} labels, but {file.name} holds {len(array)} images")
    return ArraySource("IDX", str(file), array, labels, prefix=f"{chosen}/")


def _idx_split(name: str) -> str:
    stem = PurePosixPath(name).name.lower()
    return "test" if stem.startswith(("t10k", "test")) else "val" if stem.startswith("val") else "train"


def _labels_beside(file: Path) -> Path | None:
    base = file.name.removesuffix(".gz").replace("images", "labels")
    for old in ("idx3", "idx4"):
        base = base.replace(old, "idx1")
    for name in (base, base + ".gz"):
        if name != file.name and (file.parent / name).is_file():
            return file.parent / name
    return None
