"""Precision, recall, density and coverage from counts of k-nearest-neighbour balls.

    (points, centres, radii)  ->  balls_around  ->  shares

Counts add up over blocks of centres, so the caller may stream the centres in blocks of any size.

M points, N centres, D features, B block.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 4096
_SAME = 1e-9  # relative: distances closer than this count as equal, so that ties do not depend on the order of a sum


def balls_around(points: Tensor, centres: Tensor, radii: Tensor, *, closed: bool) -> Tensor:
    """Number of balls that contain each point.

    points   [M, D]
    centres  [N, D]
    radii    float64 [N], the distance of each centre to its k-th nearest neighbour
    closed   whether a point on the surface is inside
    ->       int64 [M]
    """
    counts = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    if not len(points) or not len(centres):
        return counts
    origin = centres[:_BLOCK].double().mean(0)
    for at in range(0, len(points), _BLOCK):
        here = points[at : at + _BLOCK]
        for start in range(0, len(centres), _BLOCK):
            stop = start + _BLOCK
            counts[at : at + _BLOCK] += _block(here, centres[start:stop], radii[start:stop], origin, closed)
    return counts


def _block(points: Tensor, centres: Tensor, radii: Tensor, origin: Tensor, closed: bool) -> Tensor:
    """Counts of one block of points in one block of balls: int64 [points].

    Pairs too close to the surface for the expanded product are computed again directly.
    """
    x, y = points.double() - origin, centres.double() - origin
    x2, y2 = x.square().sum(1), y.square().sum(1)
    radii2 = radii.square()
    gap = x2[:, None] + y2 - 2 * (x @ y.T) - radii2
    rounding = 8 * x.shape[1] * torch.finfo(torch.float64).eps * (x2[:, None] + y2) + 4 * _SAME * radii2
    inside = gap < 0
    i, j = torch.nonzero(gap.abs() <= rounding, as_tuple=True)
    for some_i, some_j in zip(torch.split(i, 65536), torch.split(j, 65536), strict=True):
        distance = (points[some_i].double() - centres[some_j].double()).square().sum(1).sqrt()
        edge = radii[some_j]
        inside[some_i, some_j] = distance <= edge * (1 + _SAME) if closed else distance < edge * (1 - _SAME)
    return inside.sum(1)


def share_inside(counts: Tensor) -> float:
    """Share of points inside at least one ball (Kynkaanniemi et al. 2019, closed balls, k = 3). Precision counts
    generated points in the balls of real points, recall counts real points in the balls of generated points."""
    return float((counts > 0).double().mean())


def density(counts: Tensor, k: int) -> float:
    """(1 / kM) sum_j sum_i 1[y_j in B_k(x_i)] from the counts of M generated points in the balls of real points, k = 5
    (Naeem et al. 2020, open balls). About 1 for equal distributions, unbounded above."""
    return float(counts.double().mean()) / k


def coverage(nearest_generated: Tensor, radii: Tensor) -> float:
    """Share of real points whose open k-nearest-neighbour ball contains a generated point, k = 5 (Naeem et al. 2020).

    nearest_generated  float64 [N], distance of each real point to the nearest generated point
    radii              float64 [N], distance of each real point to its k-th nearest real neighbour
    """
    return float((nearest_generated < radii * (1 - _SAME)).double().mean())
