"""Principal components of a source: its samples as vectors of D numbers, along axes fitted to rows that are left out.

    Source + rows A … B - 1  ->  fit  ->  axes, sealed with the set  ->  Projected, a source of float32 [D]

The sums of uint8 images are exact in float64, so the covariance does not depend on blocks. The axes are computed once
per import; the last bits of their entries depend on the machine's linear algebra library.

C channels, H height, W width, P = C H W numbers of a sample (or those of a vector), D components.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import scipy.linalg
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.seeds import bounds
from entroloop.data.sources.base import Source
from entroloop.data.sources.convert import SampleForm, read_samples

AXES = "pca.safetensors"
_ROWS = 1024  # samples in memory at a time


@dataclass
class Projected:
    """A source of vectors, float32 [D]: (sample - mean) @ axes, in the units of the samples."""

    of: Source
    form: SampleForm  # of the samples before the projection
    mean: NDArray[np.float64]  # [P]
    axes: NDArray[np.float64]  # [P, D]
    kind: str
    where: str
    names: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: Mapping[str, str]

    def read(self, rows: Iterable[int]) -> Iterator[Any]:
        for row in rows:
            yield ((_samples(self.of, self.form, np.array([row]))[0] - self.mean) @ self.axes).astype(np.float32)

    def naming(self, row: int) -> AbstractContextManager[None]:
        return self.of.naming(row)


def components_of(form: SampleForm, rows: range, components: int) -> SampleForm:
    """The form of `components` components of samples of a form, fitted to `rows`.

    Raises UserError for more components than numbers per sample or directions among the rows.
    """
    size = math.prod(form.shape)
    if components > min(size, len(rows) - 1):
        most = min(size, len(rows) - 1)
        raise UserError(f"--pca {components}: {len(rows)} rows of {size} numbers have at most {most} components")
    return SampleForm((components,), "npy", form.labelled)


def projected(source: Source, form: SampleForm, rows: range, components: int, dest: Path) -> Projected:
    """The source along `components` axes fitted to `rows`. The axes are written to `dest`, or read from there.

    Raises UserError for damaged samples.
    """
    path = dest / AXES
    if not path.exists():
        found = fit(source, form, rows, components)
        files.create(path, lambda file: file.write(safetensors.numpy.save(found)))
    with reading(str(path)):
        found = safetensors.numpy.load(path.read_bytes())
    return Projected(
        source, form, found["mean"], found["axes"],
        source.kind, source.where, source.names, source.labels, source.classes, source.ignored,
    )  # fmt: skip


def fit(source: Source, form: SampleForm, rows: range, components: int) -> dict[str, NDArray[Any]]:
    """mean float64 [P], axes float64 [P, D], variance float64 [D] and the shape of a sample, int64.

    Variances have n - 1 in the denominator and fall; the largest entry of each axis is positive.
    """
    size = math.prod(form.shape)
    shift, first, second = np.zeros(size), np.zeros(size), np.zeros((size, size))
    for start, stop in bounds(rows.start, rows.stop, _ROWS):
        block = _samples(source, form, np.arange(start, stop))
        if start == rows.start:
            shift = block[0]
        block = block - shift
        first += block.sum(0)
        second += block.T @ block
    n = len(rows)
    covariance = (second - np.outer(first, first) / n) / (n - 1)
    variance, axes = scipy.linalg.eigh(covariance, subset_by_index=[size - components, size - 1])
    axes = axes[:, ::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(components)])
    return {
        "mean": shift + first / n,
        "axes": np.ascontiguousarray(axes),
        "variance": np.maximum(variance[::-1], 0),
        "shape": np.array(form.shape, dtype=np.int64),
    }


def _samples(source: Source, form: SampleForm, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The samples as they would be stored without a projection, flattened: float64 [n, P]."""
    return read_samples(source, rows, form).reshape(len(rows), -1).astype(np.float64)
