"""Sources that are arrays: built-in sets, and the files that `rows` reads.

    a name or a path  ->  ArraySource: uint8 [N, C, H, W] or float32 [N, D], with labels

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from entroloop.data.sources.base import ArraySource
from entroloop.data.sources.given import Given
from entroloop.data.sources.listing import OTHER_KIND, spelled
from entroloop.data.sources.row_files import is_rows, open_rows

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

# --- rows -----------------------------------------------------------------------------------------------------------


def stored_rows(given: Given) -> ArraySource | None:
    """A `.npy` or `.npz` file, or a sealed feature folder."""
    if not is_rows(given.path):
        return None
    given.no_splits()
    return stored(given.path, given.key, given.labels)


def lone_array(given: Given) -> ArraySource | None:
    """The only `.npy` or `.npz` file of a folder."""
    files = given.found.find(lambda name: name.lower().endswith((".npy", ".npz")))
    if len(files) != 1:
        return None
    given.no_splits()
    source = stored(given.found.path(files[0]), given.key, given.labels)
    source.ignored = {**given.found.ignored(files), **source.ignored}
    return source


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
