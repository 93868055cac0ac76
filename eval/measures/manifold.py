"""Precision, recall, density and coverage from counts of k-nearest-neighbour balls.

    (points, centres, radii)  ->  balls_around  ->  counts of balls and points  ->  shares

Counts add up over blocks, so the caller may stream the centres in blocks of any size.

M points, N centres, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from entroloop.selection.exact.bounds import nonzero

_BLOCK = 1024  # points and centres per block: its float64 matrix stays in a processor's cache
_SAME = 1e-9  # relative: distances closer than this count as equal, so that ties do not depend on the order of a sum

Balls = tuple[Tensor, bool]  # radii float64 [N], and whether a point on the surface is inside


def balls_around(points: Tensor, centres: Tensor, balls: Sequence[Balls]) -> list[tuple[Tensor, Tensor]]:
    """For each kind of balls, the number of balls that contain each point and of points that each ball contains.

    points   [M, D]
    centres  [N, D]
    balls    radii of the centres, for example the distance of each centre to its k-th nearest neighbour
    ->       int64 [M], int64 [N]
    """
    counts = [(_zeros(points), _zeros(centres)) for _ in balls]
    if not len(points) or not len(centres):
        return counts
    origin = centres[:4096].double().mean(0)
    for at in range(0, len(points), _BLOCK):
        rows = slice(at, at + _BLOCK)
        for start in range(0, len(centres), _BLOCK):
            columns = slice(start, start + _BLOCK)
            some = [(radii[columns], closed) for radii, closed in balls]
            found = _inside(points[rows], centres[columns], some, origin)
            for inside, (of_points, of_balls) in zip(found, counts, strict=True):
                ones = inside.view(torch.uint8)
                of_points[rows] += ones.sum(1, dtype=torch.int32)
                of_balls[columns] += ones.sum(0, dtype=torch.int32)
    return counts


def _zeros(rows: Tensor) -> Tensor:
    return torch.zeros(len(rows), dtype=torch.int64, device=rows.device)


def _inside(points: Tensor, centres: Tensor, balls: Sequence[Balls], origin: Tensor) -> list[Tensor]:
    """Whether each point is inside each ball, for each kind of balls: bool [points, centres].

    One product gives all squared distances. Pairs too close to the surface for it are computed again directly.
    """
    x, y = points.double() - origin, centres.double() - origin
    x2, y2 = x.square().sum(1, keepdim=True), y.square().sum(1, keepdim=True)
    rounding = 8 * (x.shape[1] + 2) * torch.finfo(torch.float64).eps  # relative to x2 + y2
    # The squared distance, less the part of the rounding error that depends on the point.
    left = torch.cat([x, x2 * (1 - rounding), torch.ones_like(x2)], 1)
    square = left @ torch.cat([-2 * y, torch.ones_like(y2), y2], 1).T
    squares = [radii.square() for radii, _ in balls]
    margins = [rounding * y2[:, 0] + 4 * _SAME * radii2 for radii2 in squares]
    possible = [square <= radii2 + margin for radii2, margin in zip(squares, margins, strict=True)]
    square += 2 * rounding * x2
    found = []
    for (radii, closed), radii2, margin, candidates in zip(balls, squares, margins, possible, strict=True):
        inside = square < radii2 - margin
        i, j = nonzero(candidates ^ inside)
        for some_i, some_j in zip(torch.split(i, 65536), torch.split(j, 65536), strict=True):
            distance = (points[some_i].double() - centres[some_j].double()).square().sum(1).sqrt()
            edge = radii[some_j]
            inside[some_i, some_j] = distance <= edge * (1 + _SAME) if closed else distance < edge * (1 - _SAME)
        found.append(inside)
    return found


def share_inside(counts: Tensor) -> float:
    """Share of points inside at least one ball, or of balls with at least one point inside.

    Precision is the share of generated points in the balls of real points, recall that of real points in the balls of
    generated points (Kynkaanniemi et al. 2019, closed balls, k = 3). Coverage is the share of balls of real points with
    a generated point inside (Naeem et al. 2020, open balls, k = 5).
    """
    return float((counts > 0).double().mean())


def density(counts: Tensor, k: int) -> float:
    """(1 / kM) sum_j sum_i 1[y_j in B_k(x_i)] from the counts of M generated points in the balls of real points, k = 5
    (Naeem et al. 2020, open balls). About 1 for equal distributions, unbounded above."""
    return float(counts.double().mean()) / k
