"""Measures of copying, from nearest-neighbour distances that the caller has found.

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

    Blind to a training point that has a near-duplicate (d2 is then small too): see `share_within`.
    """
    return float((distances[:, 0] < ratio * distances[:, 1]).double().mean())


def calibrated_distance(heldout: Tensor, share: float = 0.01) -> float:
    """The distance to the training set that only this share of held-out real points stays within.

    heldout  float64 [H], distances of held-out real points to the training set
    """
    return float(torch.quantile(heldout.double(), share, interpolation="lower"))


def share_within(distances: Tensor, limit: float) -> float:
    """Share of generated points no further than `limit` from the training set; distances float64 [M]."""
    return float((distances <= limit).double().mean())


def authenticity(nearest: Tensor, nearest_id: Tensor, training_nearest: Tensor) -> float:
    """AuthPct (Alaa et al. 2022), percent of generated points that are authentic: the training point t nearest to
    the generated point g has another training point closer to it than g is.

    nearest           float64 [M], distance of each generated point to its nearest training point
    nearest_id        int64 [M], which one that is
    training_nearest  float64 [N], distance of each training point to the nearest other one
    """
    return 100 * float((training_nearest[nearest_id] < nearest).double().mean())


def mann_whitney_z(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """z of the Mann-Whitney U that counts pairs with x > y (ties half): below zero when x tends to be smaller.

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
    """C_T (Meehan et al. 2020): Mann-Whitney z in each cell, averaged with the held-out points' share as weight.

    generated, heldout            distances to the nearest training point *of the same cell*: [M], [H]
    generated_cell, heldout_cell  the cell of each: [M], [H]
    least                         cells with fewer generated points than this are left out (fewer where M < 3 * least)

    Well below zero: generated points lie closer to the training set than real ones do. nan when no cell qualifies.
    """
    total, weight = 0.0, 0
    least = min(least, max(len(generated) // 3, 1))
    for cell in np.unique(heldout_cell):
        ours, theirs = generated[generated_cell == cell], heldout[heldout_cell == cell]
        if len(ours) >= least:
            total += len(theirs) * mann_whitney_z(ours, theirs)
            weight += len(theirs)
    return total / weight if weight else math.nan
