"""The exact distances inside one block of candidates, on which a strategy's sequential rule runs.

    Sketch (a block's rows) -> Block: near distances by row       for greedy
                          -> conflicts: pairs within a level    for the threshold filter
                          -> earlier_distances                  for the radii of any order

Shapes: B rows of a block, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.world import World
from entroloop.selection.exact.bounds import Pairs, at_most, contenders
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.formats import BF16, F32, LONGER
from entroloop.selection.exact.intervals import check, cut, surely
from entroloop.selection.exact.sketch import Sketch, product, tile_columns


class Block:
    """The distances inside one block of candidates that can lower a bound, by row.

    A distance is kept if it is below the bounds of both its rows: greedy takes the row with the larger bound first, so
    the distance can only lower the other bound. The sequential rule runs on these distances on the host, because single
    steps are too short for a device. On a CPU each row has a list, and each rank computes a share of the distances of a
    large block; all ranks pass the same rows. From a GPU, where blocks are large, comes a whole matrix. `pairs` is the
    number of distances. It depends on rows and bounds alone, so all ranks can decide by it, whatever formats they use.
    """

    def __init__(self, points: Sketch, bound: NDArray[np.float64], world: World) -> None:
        n, device = len(points), points.rows.device
        order = torch.from_numpy(np.argsort(-bound, kind="stable")).to(device)
        level = torch.from_numpy(bound).to(device)[order]
        shared = world.size > 1 and n > tile_columns(device) and device.type != "cuda"
        mine = _share(n, world if shared else World(), device)
        found: list[Pairs] = [(mine[:0], mine[:0], level[:0])]
        left, right = points.take(order[mine]), points.take(order).turn()
        for i, j, distance in contenders(left, right, level[mine], None, before=mine):
            near = distance < level[mine[i]]  # the rows before i have no smaller bound
            found.append((order[mine[i[near]]], order[j[near]], distance[near]))
        i, j, distance = (torch.cat(part) for part in zip(*found, strict=True))
        self._matrix: NDArray[np.float64] | None = None
        if device.type == "cuda":
            matrix = torch.full((n, n), torch.inf, dtype=torch.float64, device=device)
            matrix[i, j] = matrix[j, i] = distance
            self._matrix = matrix.cpu().numpy()
            self.pairs = len(i)
            return
        if shared:
            packed = world.gather_rows(torch.stack([i.double(), j.double(), distance], 1))
            i, j, distance = packed[:, 0].long(), packed[:, 1].long(), packed[:, 2]
        self.pairs = len(i)
        rows = torch.cat([i, j]).numpy()
        by_row = np.argsort(rows, kind="stable")
        self._start = np.searchsorted(rows[by_row], np.arange(n + 1)).tolist()
        self._columns: list[int] = torch.cat([j, i]).numpy()[by_row].tolist()
        self._distances: list[float] = np.tile(distance.numpy(), 2)[by_row].tolist()

    def near(self, pick: int) -> Iterator[tuple[int, float]]:
        """The other rows whose distance to the pick is kept, and the distances."""
        if self._matrix is not None:
            columns = np.flatnonzero(np.isfinite(self._matrix[pick]))
            return zip(columns.tolist(), self._matrix[pick, columns].tolist(), strict=True)
        part = slice(self._start[pick], self._start[pick + 1])
        return zip(self._columns[part], self._distances[part], strict=True)


def _share(n: int, world: World, device: torch.device) -> Tensor:
    """This rank's share of the rows of a block, in tiles back and forth, because later rows have more pairs."""
    turn = torch.arange(n, device=device) // tile_columns(device) % (2 * world.size)
    return (torch.minimum(turn, 2 * world.size - 1 - turn) == world.rank).nonzero()[:, 0]


def conflicts(points: Sketch, threshold: float) -> NDArray[np.bool_]:
    """[B, B]: whether row i and a later row j are no further apart than the threshold. Entries j <= i mean nothing.

    The product decides all pairs except those within its error of the threshold. The canonical distance decides these.
    """
    if points.form is BF16 and points.rows.device.type == "cuda":
        points = points.again(F32)  # leaves few pairs open, where a second product costs little and its launches much
    n, scale = len(points), points.frame.scale
    while True:
        form, worst = points.form, points.errors + points.errors.amax(0)
        result = product(points, points.turn())
        out = result < surely(form, worst, threshold, scale)[:, None]
        i, j = at_most(result, cut(form, worst, threshold, scale))
        open_ = (i < j) > out[i, j]
        i, j = i[open_], j[open_]
        if len(i) <= 4 * n or form.name not in LONGER:
            break
        points = points.again(LONGER[form.name])
    distance = pair_distances(points.rows, points.numbers(i), points.rows, points.numbers(j))
    check(form, points.errors[i] + points.errors[j], result[i, j], distance, scale)
    out[i, j] = distance <= threshold
    return out.cpu().numpy()


def earlier_distances(left: Sketch, right: Sketch, level: Tensor) -> Tensor:
    """For each row min(level, its canonical distance to the nearest row before it). float64 [B] -> float64 [B].

    left, right  the same rows as left and as right factors
    """
    out = level.clone()
    earlier = torch.arange(len(level), device=level.device)
    for i, _, distance in contenders(left, right, level.clone(), before=earlier):
        out.scatter_reduce_(0, i, distance, "amin")
    return out
