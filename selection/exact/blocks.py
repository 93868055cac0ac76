"""The exact distances inside one block of candidates, on which a strategy's sequential rule runs.

    Side (a block's rows) -> Block: near distances by row       for greedy
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
from entroloop.selection.exact.bounds import Pairs, Query, contenders, nonzero
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.formats import LONGER
from entroloop.selection.exact.sketch import Columns, Frame, Side, product, tile_columns


class Block:
    """The distances inside one block of candidates that are no larger than `level`, by row.

    The sequential rule of a strategy runs on these. Everything is on the host, because single steps are too short for a
    device. On a CPU each row has a list, and each rank computes a share of the distances of a large block; all ranks
    pass the same rows. From a GPU, where blocks are large, comes a whole matrix. `pairs` is the number of distances. It
    depends on the rows alone, so all ranks can decide by it, whatever formats they use.
    """

    def __init__(self, side: Side, level: float, frame: Frame, world: World) -> None:
        n, device = len(side.sketch), side.rows.device
        levels = torch.full((n,), level, dtype=torch.float64, device=device)
        self._matrix: NDArray[np.float64] | None = None
        if device.type == "cuda":
            matrix = torch.full((n, n), torch.inf, dtype=torch.float64, device=device)
            for i, j, distance in _earlier_pairs(side, levels, None, frame, World()):
                matrix[i, j] = matrix[j, i] = distance.masked_fill(distance > level, torch.inf)
            self._matrix = matrix.cpu().numpy()
            self.pairs = int(np.isfinite(self._matrix).sum()) // 2
            return
        none = torch.empty(0, dtype=torch.int64)
        found: list[Pairs] = [(none, none, none.double())]
        shared = world.size > 1 and n > tile_columns(device)
        for i, j, distance in _earlier_pairs(side, levels, None, frame, world if shared else World()):
            near = distance <= level
            found.append((i[near], j[near], distance[near]))
        mine = [torch.cat(part) for part in zip(*found, strict=True)]
        if shared:
            packed = world.gather_rows(torch.stack([part.double() for part in mine], 1))
            mine = [packed[:, 0].long(), packed[:, 1].long(), packed[:, 2]]
        lower, upper, near_by = (part.numpy() for part in mine)
        self.pairs = len(lower)
        rows = np.concatenate([lower, upper])
        order = np.argsort(rows, kind="stable")
        self._start = np.searchsorted(rows[order], np.arange(n + 1)).tolist()
        self._columns: NDArray[np.int64] = np.concatenate([upper, lower])[order]
        self._distances: NDArray[np.float64] = np.tile(near_by, 2)[order]

    def lower(self, bound: NDArray[np.float64], pick: int) -> None:
        """Sets bound[j] = min(bound[j], distance to the pick) for every j with a distance within `level`."""
        if self._matrix is not None:
            np.minimum(bound, self._matrix[pick], out=bound)
            return
        part = slice(self._start[pick], self._start[pick + 1])
        columns = self._columns[part]
        bound[columns] = np.minimum(bound[columns], self._distances[part])


def conflicts(side: Side, threshold: float, frame: Frame) -> NDArray[np.bool_]:
    """[B, B]: whether row i and a later row j are no further apart than the threshold. Entries j <= i mean nothing.

    The product decides all pairs except those within its error of the threshold. The canonical distance decides these.
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
    distance = pair_distances(side.rows, side.numbers(i), side.rows, side.numbers(j))
    bounds[i].check(bounds[j], result[i, j], distance, frame.scale)
    out[i, j] = distance <= threshold
    return out.cpu().numpy()


def earlier_distances(side: Side, level: Tensor, frame: Frame) -> Tensor:
    """For each row min(level, its canonical distance to the nearest row before it). float64 [B] -> float64 [B]."""
    out = level.clone()
    for i, _, distance in _earlier_pairs(side, out, 1, frame, World()):
        out.scatter_reduce_(0, i, distance, "amin")
    return out


def _earlier_pairs(side: Side, level: Tensor, k: int | None, frame: Frame, world: World) -> Iterator[Pairs]:
    """The `contenders` among this rank's share of the pairs j < i. The caller may lower `level` [B] between pairs."""
    columns, width = Columns.of(side), tile_columns(level.device)
    for number, start in enumerate(range(0, len(level), width)):
        turn = number % (2 * world.size)  # back and forth, because later rows have more pairs
        if min(turn, 2 * world.size - 1 - turn) != world.rank:
            continue
        rows = slice(start, min(start + width, len(level)))
        left = side.part(rows)
        for first, last, same in ((start, rows.stop, True), (0, start, False)):
            if first < last:
                query = Query(level[rows], k, earlier=same)
                for i, j, distance in contenders(left, columns.part(first, last), query, frame):
                    yield i + start, j + first, distance
