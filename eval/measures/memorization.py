"""Measures of copying, from nearest-neighbour distances that the caller has computed.

    (distances generated -> training, …)  ->  shares, percent, z

M generated points, N training points, H held-out points, C cells.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor


def memorized_fraction(distances: Tensor, ratio: float = 1 / 3) -> float:
    """Share of generated points with d1 / d2 < ratio, for the distances d1 <= d2 to the nearest and second-nearest
    training point: float64 [M, 2]. On pixels and with 1/3 this is the measure of Yoon et al. (2023) and others.

    An exact copy, d1 = 0, always counts, also where the training set holds the point twice and d2 is 0 as well.
    The measure misses inexact copies of a training point that has a near-duplicate, because d2 is then small too: see
    `share_within`.
    """
    nearest, second = distances.unbind(1)
    return float(((nearest < ratio * second) | (nearest == 0)).double().mean())


def calibrated_distance(heldout: Tensor, share: float = 0.01) -> float:
    """The `share` quantile of the distances from held-out real points to the training set, rounded down to one of these
    distances.

    heldout  float64 [H], distances of held-out real points to the training set
    """
    return float(torch.quantile(heldout.double(), share, interpolation="lower"))


def share_within(distances: Tensor, limit: float) -> float:
    """Share of generated points no further than `limit` from the training set; distances float64 [M]."""
    return float((distances <= limit).double().mean())


def authenticity(nearest: Tensor, nearest_id: Tensor, training_nearest: Tensor) -> float:
    """AuthPct (Alaa et al. 2022), the percentage of authentic generated points. A generated point g is authentic when
    its nearest training point t is closer to another training point than to g.

    nearest           float64 [M], distance of each generated point to its nearest training point
    nearest_id        int64 [M], row of that training point
    training_nearest  float64 [N], distance of each training point to the nearest other training point
    """
    return 100 * float((training_nearest[nearest_id] < nearest).double().mean())


def mann_whitney_z(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """z of the Mann-Whitney U, the number of pairs with x > y (a tie counts half). z is below zero when x tends to be
    smaller.

    Normal approximation without correction for ties or continuity, as in C_T.
    """
    n, m = len(x), len(y)
    ranks = stats.rankdata(np.concatenate([x, y]))
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def ct_score(
    generated: NDArray[np.float64],
    generated_cell: NDArray[np.int64],
    heldout: NDArray[np.float64],
    heldout_cell: NDArray[np.int64],
    *,
    least: int = 20,
) -> float:
    """C_T (Meehan et al. 2020): the mean of the cells' Mann-Whitney z, weighted by their numbers of held-out points.

    generated, heldout            distances to the nearest training point *of the same cell*: [M], [H]
    generated_cell, heldout_cell  the cell of each: [M], [H]
    least                         cells with fewer generated points are left out; never more than max(M // 3, 1)

    Well below zero, generated points are closer to the training set than held-out points are. nan when every cell is
    left out.
    """
    total, weight = 0.0, 0
    least = min(least, max(len(generated) // 3, 1))
    for cell in np.unique(heldout_cell):
        ours, theirs = generated[generated_cell == cell], heldout[heldout_cell == cell]
        if len(ours) >= least:
            total += len(theirs) * mann_whitney_z(ours, theirs)
            weight += len(theirs)
    return total / weight if weight else math.nan
