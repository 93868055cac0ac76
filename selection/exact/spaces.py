"""Metrics as maps of rows, so that everything else only knows the Euclidean distance.

    bank Shard -> fit_metric -> Metric: rows [n, D] -> rows [n, D] whose Euclidean distance is the metric

A metric is a function (bank: Shard) -> (rows [n, D] -> rows [n, D']), found by name in `catalogue.py`.

`cosine` scales rows to length 1; distances come out as 1 - cos = |u - v|^2 / 2, which keeps its accuracy for near
neighbours. `whitened` is the Mahalanobis distance under the covariance of all bank rows. Its statistics and its
products are taken on integers in float64, exactly: rows come out with the same bits however they are spread over
ranks and blocks.

Shapes: n rows here, N rows of all ranks, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.selection.catalogue import DISTANCES
from entroloop.selection.exact.distance import fold_sum, root
from entroloop.selection.exact.rows import Shard

_BITS = 18  # of one slice; products of slices summed over 2^14 rows or features stay below 2^53
_ROWS = 1 << 13
_SMALLEST_LENGTH = 1e-300  # rows of zeros are refused before
_SMALLEST_EIGENVALUE = 1e-9  # of the mean one: directions in which the bank does not vary


@dataclass(frozen=True)
class Metric:
    """`rows` maps points; `report` turns the Euclidean distance of mapped points into the metric's own number."""

    name: str
    rows: Callable[[Tensor], Tensor]

    def report(self, distance: Tensor) -> Tensor:
        return distance.square() / 2 if DISTANCES.facts(self.name).angular else distance


def fit_metric(name: str, bank: Shard) -> Metric:
    """The metric of that name, fitted to the bank where it is one that is.

    Raises UserError for an unknown name, and where the bank cannot have a covariance under `whitened`.
    """
    rows = DISTANCES.load(name)(bank)
    if not callable(rows):
        raise UserError(f"metric {name}: called with the bank it must return a map of rows, not {type(rows).__name__}")
    return Metric(name, rows)


def euclidean(bank: Shard) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows


def cosine(bank: Shard) -> Callable[[Tensor], Tensor]:
    return _unit_rows


def whitened(bank: Shard) -> Callable[[Tensor], Tensor]:
    return _Whitening(bank)


def check_rows(name: str, shard: Shard, what: str) -> None:
    """Raises UserError on every rank, naming the first row without a direction, under an angular metric."""
    if not DISTANCES.facts(name).angular:
        return

    def check() -> None:
        for start in range(0, len(shard.rows), _ROWS):
            zero = (shard.rows[start : start + _ROWS] == 0).all(1)
            if bool(zero.any()):
                row = shard.offset + start + int(zero.int().argmax())
                raise UserError(f"{what}: row {row} is zero and has no direction under metric {name}")

    shard.world.agree(check)


def _unit_rows(rows: Tensor) -> Tensor:
    out = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS].double()
        length = root(fold_sum(part.square())).clamp(min=_SMALLEST_LENGTH)
        torch.div(part, length[:, None], out=out[start : start + len(part)])
    return out


def _slices(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers up to 2^37 in float64 as high * 2^18 + low."""
    high = torch.round(x * 2.0**-_BITS)
    return high, x - high * 2.0**_BITS


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integer parts of a @ b, each exact: high high, mixed, low low."""
    (ah, al), (bh, bl) = _slices(a), _slices(b)
    return ah @ bh, ah @ bl + al @ bh, al @ bl


def _join(high: Tensor, mixed: Tensor, low: Tensor) -> Tensor:
    return high.double() * 2.0 ** (2 * _BITS) + (mixed.double() * 2.0**_BITS + low.double())


class _Whitening:
    """x -> (x - mean) W with W W^T the inverse covariance (N - 1 in the denominator).

    With fewer rows than features, and in directions without variance, the covariance is shrunk towards its mean
    eigenvalue: by D / (N + D) if N <= D, and eigenvalues count as at least 1e-9 of the mean one.
    """

    def __init__(self, bank: Shard) -> None:
        rows, world = bank.rows, bank.world
        n, d = bank.total, rows.shape[1]
        if n < 2:
            raise UserError(f"metric whitened: needs at least 2 bank rows, there are {n}")
        largest = torch.zeros(1, dtype=torch.float64, device=rows.device)
        for part in torch.split(rows, _ROWS):
            largest = torch.maximum(largest, part.double().abs().amax()[None]) if len(part) else largest
        largest = world.all_reduce(largest, "max")
        self.step = 2.0 ** (math.frexp(float(largest))[1] - 2 * _BITS) if float(largest) > 0 else 1.0
        total = torch.zeros(d, dtype=torch.int64, device=rows.device)
        for part in torch.split(rows, _ROWS):
            total += self._integers(part).long().sum(0)
        self.mean = torch.round(world.all_reduce(total).double() / n)
        sums = torch.zeros((3, d, d), dtype=torch.int64, device=rows.device)
        for part in torch.split(rows, _ROWS):
            x = self._integers(part) - self.mean
            sums += torch.stack(_product(x.T, x)).long()
        sums = world.all_reduce(sums)
        covariance = (_join(sums[0], sums[1], sums[2]) / (n - 1)).cpu().numpy()
        if np.trace(covariance) <= 0:  # on every rank alike: the sums are exact
            raise UserError("metric whitened: all bank rows are equal, so that no direction has a scale")
        matrix = torch.from_numpy(_inverse_root(covariance, n)) if world.is_main else torch.empty(d, d).double()
        matrix = world.broadcast(matrix.contiguous().to(rows.device))
        # integers of 36 bits a column; the scale is a power of two
        self.scale = torch.exp2(torch.frexp(matrix.abs().amax(0)).exponent.double() - 2 * _BITS)
        self.matrix = torch.round(matrix / self.scale)

    def _integers(self, rows: Tensor) -> Tensor:
        return torch.round(rows.double() / self.step)

    def __call__(self, rows: Tensor) -> Tensor:
        out = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), _ROWS):
            x = self._integers(rows[start : start + _ROWS]) - self.mean
            out[start : start + len(x)] = _join(*_product(x, self.matrix)) * self.scale
        return out


def _inverse_root(covariance: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    d = len(covariance)
    mean = np.trace(covariance) / d
    share = d / (n + d) if n <= d else 0.0
    values, vectors = scipy.linalg.eigh((1 - share) * covariance + share * mean * np.eye(d))
    root: NDArray[np.float64] = vectors / np.sqrt(np.maximum(values, _SMALLEST_EIGENVALUE * mean))
    return root
