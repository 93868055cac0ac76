"""What happens inside one block of candidates, where a strategy's sequential rule runs.

    Side (a block's rows) -> Block: near distances by row     for greedy
                          -> conflicts: who excludes whom     for the threshold filter
                          -> earlier_distances                for the radii of any order

Shapes: B rows of a block, P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.selection.exact.bounds import Query, contenders, nonzero
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.sketch import LONGER, TILE_COLUMNS, Columns, Frame, Side, product


class Block:
    """The distances inside one block of candidates that are not certainly above `level`, by row.

    The sequential rule of a strategy runs on these. Everything is on the host: single steps are too short for a device.
    """

    def __init__(self, side: Side, level: float, frame: Frame) -> None:
        n = len(side.sketch)
        levels = torch.full((n,), level, dtype=torch.float64, device=side.rows.device)
        found = [
            pair[:, pair[0] < pair[1]]
            for pair in map(torch.stack, contenders(side, Columns.of(side), Query(levels, None), frame))
        ]
        pairs = torch.cat(found, 1) if found else torch.empty((2, 0), dtype=torch.int64, device=side.rows.device)
        distance = pair_distances(side.rows, side.numbers(pairs[0]), side.rows, side.numbers(pairs[1]))
        self.pairs = pairs.shape[1]
        i, j = pairs.cpu().numpy()
        rows = np.concatenate([i, j])
        order = np.argsort(rows, kind="stable")
        self._start = np.searchsorted(rows[order], np.arange(n + 1)).tolist()
        self._columns: NDArray[np.int64] = np.concatenate([j, i])[order]
        self._distances: NDArray[np.float64] = np.tile(distance.cpu().numpy(), 2)[order]

    def lower(self, bound: NDArray[np.float64], pick: int) -> None:
        """bound[j] = min(bound[j], distance to the pick) for every j where that can matter."""
        part = slice(self._start[pick], self._start[pick + 1])
        columns = self._columns[part]
        bound[columns] = np.minimum(bound[columns], self._distances[part])


def conflicts(side: Side, threshold: float, frame: Frame) -> NDArray[np.bool_]:
    """[B, B]: whether row i and a later row j are no further apart than the threshold; j <= i is not to be looked at.

    The product decides all pairs but those within its error of the threshold, which get the canonical distance.
    """
    n = len(side.sketch)
    level = torch.full((n,), threshold, dtype=torch.float64, device=side.rows.device)
    while True:
        bounds = side.sketch.certificate
        form, worst = bounds.format, bounds.worst()
        result = product(side.sketch.left, side.sketch.turned(), n, frame, form)
        out = result < bounds.surely(worst, level, frame.scale)[:, None]
        i, j = nonzero((result <= bounds.cut(worst, level, frame.scale)[:, None]) ^ out)
        i, j = i[i < j], j[i < j]
        if len(i) <= 4 * n or form.name not in LONGER:
            break
        side = side.again(frame, LONGER[form.name], torch.arange(n, device=side.rows.device))
    out[i, j] = pair_distances(side.rows, side.numbers(i), side.rows, side.numbers(j)) <= threshold
    return out.cpu().numpy()


def earlier_distances(side: Side, level: Tensor, frame: Frame) -> Tensor:
    """min(level, the canonical distance to the nearest row before it) for each row. float64 [B] -> [B]."""
    out = level.clone()
    columns = Columns.of(side)
    for start in range(0, len(out), TILE_COLUMNS):
        rows = slice(start, min(start + TILE_COLUMNS, len(out)))
        left = side.part(rows)
        parts = [(columns.part(start, rows.stop), True)] + ([(columns.part(0, start), False)] if start else [])
        for right, earlier in parts:
            for i, j in contenders(left, right, Query(out[rows], earlier=earlier), frame):
                before = j < i if earlier else torch.ones_like(i, dtype=torch.bool)
                i, j = i[before], j[before]
                distance = pair_distances(left.rows, left.numbers(i), right.rows, right.numbers(j))
                out[rows].scatter_reduce_(0, i, distance, "amin")
    return out
