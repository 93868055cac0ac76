"""Metrics as maps of rows, so that all other code computes Euclidean distances only.

    bank RankRows -> fit_metric -> Metric: rows [n, D] -> rows [n, D] whose Euclidean distance is the metric

A metric is a function (bank: RankRows) -> (rows [n, D] -> rows [n, D']), found by name in `catalogue.py`.

`cosine` scales rows to length 1. Its distances are reported as 1 - cos = |u - v|^2 / 2, which is accurate for near
neighbours. `whitened` is the Mahalanobis distance under the covariance of all bank rows. Its statistics and products
are computed exactly, on integers in float64, so the mapped rows have the same bits for any spread of the rows over
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
from entroloop.selection.exact.distance import bad_row_error, first_bad_row, fold_sum, power_of_two, root
from entroloop.selection.exact.rows import RankRows

_BITS = 18  # per slice; products of slices summed over 2^14 rows or features stay below 2^53
_ROWS = 1 << 13
_SMALLEST_LENGTH = 1e-300  # rows of zeros have been refused before
_SMALLEST_EIGENVALUE = 1e-9  # share of the mean eigenvalue, for directions in which the bank does not vary


@dataclass(frozen=True)
class Metric:
    """`rows` maps points; `report` converts the Euclidean distance of mapped points to the metric's own units."""

    name: str
    rows: Callable[[Tensor], Tensor]
    bank: RankRows

    def report(self, distance: Tensor) -> Tensor:
        return distance.square() / 2 if DISTANCES.facts(self.name).angular else distance


def fit_metric(name: str, bank: RankRows) -> Metric:
    """The metric of that name, fitted to the bank if the metric depends on it.

    Raises UserError for an unknown name, and under `whitened` when the bank has no covariance.
    """
    rows = DISTANCES.load(name)(bank)
    if not callable(rows):
        raise UserError(f"metric {name}: called with the bank it must return a map of rows, not {type(rows).__name__}")
    return Metric(name, rows, bank)


def euclidean(bank: RankRows) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows


def cosine(bank: RankRows) -> Callable[[Tensor], Tensor]:
    return _unit_rows


def whitened(bank: RankRows) -> Callable[[Tensor], Tensor]:
    return _Whitening(bank)


def check_rows(name: str, own: RankRows, what: str) -> None:
    """Under an angular metric, raises UserError on every rank, naming the first zero row, which has no direction."""
    if not DISTANCES.facts(name).angular:
        return

    def check() -> None:
        for start in range(0, len(own.rows), _ROWS):
            zero = (own.rows[start : start + _ROWS] == 0).all(1)
            if bool(zero.any()):
                row = own.offset + start + int(zero.int().argmax())
                raise UserError(f"{what}: row {row} is zero and has no direction under metric {name}")

    own.world.agree(check)


def check_mapped(fitted: Metric, own: RankRows, what: str, mapped: Tensor | None = None) -> None:
    """Raises UserError on every rank, naming the first row that the metric maps to NaN or a value that is too large.

    mapped  the rows as the metric maps them; None: they are mapped here, block by block
    No built-in metric maps rows of its bank, or of narrower dtypes than float64, to such values.
    """
    if fitted.name in DISTANCES.built_in and (own is fitted.bank or own.rows.dtype != torch.float64):
        return

    def check() -> None:
        for start in range(0, len(own.rows), _ROWS):
            block = slice(start, start + _ROWS)
            bad = first_bad_row(fitted.rows(own.rows[block]) if mapped is None else mapped[block])
            if bad:
                raise bad_row_error(f"{what}: metric {fitted.name}", own.offset + start + bad[0], bad[1])

    own.world.agree(check)


def _unit_rows(rows: Tensor) -> Tensor:
    out = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS].double()
        if rows.dtype == torch.float64:  # scaled so that no square underflows
            part = part * power_of_two(-torch.frexp(part.abs().amax(1, keepdim=True)).exponent)
        length = root(fold_sum(part.square())).clamp(min=_SMALLEST_LENGTH)
        torch.div(part, length[:, None], out=out[start : start + len(part)])
    return out


def _slices(x: Tensor) -> tuple[Tensor, Tensor]:
    """Splits integers up to 2^37 in float64 into (high, low) with x = high * 2^18 + low."""
    high = torch.round(x * 2.0**-_BITS)
    return high, x - high * 2.0**_BITS


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The integer parts of a @ b, each exact: high by high, mixed, low by low."""
    (ah, al), (bh, bl) = _slices(a), _slices(b)
    return ah @ bh, ah @ bl + al @ bh, al @ bl


def _join(high: Tensor, mixed: Tensor, low: Tensor) -> Tensor:
    return high.double() * 2.0 ** (2 * _BITS) + (mixed.double() * 2.0**_BITS + low.double())


def exact_product(x: Tensor, axes: Tensor) -> Tensor:
    """x @ axes with coordinates rounded so that sums are exact, whatever order a library adds in.

    x     float64 [n, D]
    axes  float64 [D, k], rounded to multiples of 2^-16 of the power of two above the largest entry
    ->    float64 [n, k]; each row depends on the same row of x alone
    """
    bits = 53 - 16 - x.shape[1].bit_length()
    step = power_of_two(torch.frexp(x.abs().amax(1, keepdim=True)).exponent - bits)
    unit = power_of_two(torch.frexp(axes.abs().max()).exponent - 16)
    product: Tensor = torch.round(x / step) @ torch.round(axes / unit)
    return product * step * unit


class _Whitening:
    """x -> (x - mean) W with W W^T the inverse covariance (N - 1 in the denominator).

    If N <= D, the covariance is shrunk towards its mean eigenvalue by the share D / (N + D). Eigenvalues below 1e-9 of
    the mean eigenvalue (directions without variance) are raised to that value. Raises UserError for fewer than 2 bank
    rows and for bank rows that are all equal.
    """

    def __init__(self, bank: RankRows) -> None:
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
        if np.trace(covariance) <= 0:  # the sums are exact, so every rank raises
            raise UserError("metric whitened: all bank rows are equal, so that no direction has a scale")
        matrix = torch.from_numpy(_inverse_root(covariance, n)) if world.is_main else torch.empty(d, d).double()
        world.barrier()  # which has no limit of time
        matrix = world.broadcast(matrix.contiguous().to(rows.device))
        # integers of 36 bits; one power of two per column as scale
        self.scale = power_of_two(torch.frexp(matrix.abs().amax(0)).exponent - 2 * _BITS)
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
