"""The pairs that can matter: products in low precision show which distances must be computed.

    Side (left rows) + Columns (right rows) + Query -> contenders -> pairs with their canonical distances

A pair whose certified interval (`sketch`) is above the level is certainly no nearer than the level. For every other
pair the canonical distance is computed, and InexactProductError is raised if it is outside the interval. If a format
cannot separate the pairs, the next longer format is tried: bfloat16 -> float32 -> float64. So the format changes the
time, never the result.

Shapes: n left rows, m right rows, D features, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.formats import LONGER
from entroloop.selection.exact.sketch import ON_GPU, Certificate, Columns, Frame, Side, product, tile_columns

TILE_ROWS = 2048
SWEEP_ROWS = 8192  # left rows compared with all right rows in one sweep
_KEEP = 0.7  # settled rows are removed from a sweep once fewer than this share of its rows are left
_GROUPS = 64  # groups of columns whose minima bound the k-th smallest product
_CROWDED = 4  # contenders per row above which a longer format is cheaper than computing the distances


@dataclass(frozen=True)
class Query:
    """Says which pairs (i, j) of left and right rows matter.

    level   [n] float64: pairs further apart than level[i] do not matter
    start   [n] int64, ascending: left row i has already been compared with the right rows before start[i]
    k       only the k nearest right rows of each left row matter, ties included; None: all within the level
    earlier only pairs j < i matter: left and right are the same rows, at most one tile of them
    ignore  [n] int64: a right row that does not count for this left row, -1 for none
    done    [n] bool: the caller sets it between pairs for left rows that need no further tile
    floor   a left row certainly nearer than this to some right row is settled and is compared no further
    upper   [n] float64, written: for settled rows that get no pairs, an upper bound of their smallest distance
    resume  [n] int64, written: all right rows before this one are done; each gave a pair or is further than `upper`
    """

    level: Tensor
    k: int | None = 1
    floor: float = 0.0
    upper: Tensor | None = None
    resume: Tensor | None = None
    start: Tensor | None = None
    earlier: bool = False
    ignore: Tensor | None = None
    done: Tensor | None = None

    def part(self, part: slice) -> Query:
        tensors = (self.upper, self.resume, self.start, self.ignore, self.done)
        upper, resume, start, ignore, done = (None if x is None else x[part] for x in tensors)
        return Query(self.level[part], self.k, self.floor, upper, resume, start, self.earlier, ignore, done)


Pairs = tuple[Tensor, Tensor, Tensor]  # left rows int64 [P], right rows int64 [P], distances float64 [P]


def tile_rows(device: torch.device) -> int:
    """Left rows per product on that device."""
    return TILE_ROWS * (ON_GPU if device.type == "cuda" else 1)


def contenders(left: Side, right: Columns, query: Query, frame: Frame, lowest: Tensor | None = None) -> Iterator[Pairs]:
    """Yields pairs with their canonical distances. Every pair that can matter is among them.

    lowest  the answer of `lowest_both` for these rows; without it the products are computed here
    """
    tiles = right.tiles()
    for top in range(0, len(left.sketch), SWEEP_ROWS):
        rows = slice(top, top + SWEEP_ROWS)
        known = None if lowest is None else lowest[:, rows]
        for i, j, distance in _sweep(left.part(rows), tiles, query.part(rows), frame, known):
            yield i + top, j, distance


def lowest_both(
    left: Side, right: Columns, frame: Frame, same: bool = False, ignore_self: bool = False
) -> tuple[Tensor, Tensor]:
    """The smallest products in both directions, from one product per pair. For `contenders` without `upper`.

    same         left and right are the same rows; each pair of two tiles is multiplied once
    ignore_self  with `same`, a row does not count for itself
    ->           of each left row in each tile of right rows [tiles, n]; of each right row in each tile of left rows
    """
    form, device = left.sketch.certificate.format, left.rows.device
    tiles, n, width = right.tiles(), len(left.sketch), tile_columns(device)
    rowwise = torch.full((len(tiles), n), form.infinite, dtype=form.compared, device=device)
    columnwise = rowwise
    if not same:
        columnwise = rowwise.new_full((-(-n // width), len(right)), form.infinite)
    step = max(1, tile_rows(device) // width) * width
    for t, tile in enumerate(tiles):
        columns = slice(t * width, t * width + len(tile))
        for top in range(columns.start if same else 0, n, step):
            rows = slice(top, min(top + step, n))
            result = product(left.sketch.left[rows], tile.right, len(tile), frame, form)
            if same and ignore_self and top == columns.start:
                result.diagonal().fill_(form.infinite)
            rowwise[t, rows] = result.amin(1)
            for part in range(top, rows.stop, width):
                columnwise[part // width, columns] = result[part - top : part - top + width].amin(0)
    return rowwise, columnwise


def _sweep(
    left: Side, tiles: list[Columns], query: Query, frame: Frame, known: Tensor | None = None
) -> Iterator[Pairs]:
    """Finds the smallest product of each row in each tile, then yields pairs from tiles that can hold the nearest."""
    level, width = query.level, tile_columns(left.rows.device)
    bounds = left.sketch.certificate
    relevant = None
    if query.k is not None and (len(tiles) > 1 or query.upper is not None):
        if known is None:
            lowest, upper, reached = _lowest(left, tiles, query, frame)
        else:
            lowest, upper = known, level
        worst = [tile.certificate.worst() for tile in tiles]
        others = Certificate(
            torch.stack([w.square for w in worst]), torch.stack([w.rho for w in worst]), bounds.format, bounds.columns
        )  # [tiles, 1]
        if query.upper is None and query.k <= len(tiles):
            reach = bounds.reach(others, lowest, frame.scale)
            upper = reach.amin(0) if query.k == 1 else reach.kthvalue(query.k, dim=0).values
        level = torch.minimum(level, upper)
        relevant = lowest <= bounds.cut(others, level, frame.scale)
        if query.upper is not None and query.resume is not None:
            settled = level < query.floor
            # A row settled by a single tile can be resumed at that tile if it is needed again. Others are finished now.
            settled &= relevant.sum(0) == 1
            query.upper[settled] = level[settled]
            first = relevant[:, settled].int().argmax(0)
            query.resume[:] = (reached * width).clamp(max=query.resume)
            query.resume[settled] = first * width
            relevant &= ~settled
    everything = torch.arange(len(level), device=level.device)
    for t, tile in enumerate(tiles):
        alive = everything if relevant is None else relevant[t].nonzero()[:, 0]
        if query.done is not None:
            alive = alive[~query.done[alive]]
        for rows in torch.split(alive, tile_rows(alive.device)):
            for i, j, distance in _pairs(left, tile, rows, level, query, t * width, frame):
                if relevant is not None:
                    _check_lowest(lowest[t], bounds, tile, level, i, distance, frame)
                yield i, j + t * width, distance


def _check_lowest(
    lowest: Tensor, bounds: Certificate, tile: Columns, level: Tensor, i: Tensor, distance: Tensor, frame: Frame
) -> None:
    """Checks a tile's smallest products against its smallest distances, for rows whose distance is within `level`."""
    nearest = torch.full_like(level, torch.inf).scatter_reduce_(0, i, distance, "amin")
    rows = (torch.isfinite(nearest) & (nearest <= level)).nonzero()[:, 0]
    bounds[rows].check(tile.certificate.worst(), lowest[rows], nearest[rows], frame.scale)


def _lowest(left: Side, tiles: list[Columns], query: Query, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest product of each row in each tile [tiles, n], upper bounds of the distance [n], tiles compared [n].

    Rows that the query settles are removed on the way; their remaining products are infinite.
    """
    bounds, form = left.sketch.certificate, left.sketch.certificate.format
    lowest = torch.full((len(tiles), len(left.sketch)), form.infinite, dtype=form.compared, device=left.rows.device)
    upper, matrix = query.level.clone(), left.sketch.left
    width, step = tile_columns(matrix.device), tile_rows(matrix.device)
    reached = torch.zeros(len(matrix), dtype=torch.int64, device=matrix.device)
    alive = torch.arange(len(matrix), device=matrix.device)
    for t, tile in enumerate(tiles):
        joined = len(alive)
        if query.start is not None:
            joined = int(torch.searchsorted(query.start[alive], (t + 1) * width))
        here = alive[:joined]
        low = lowest.new_empty(joined)
        for top in range(0, joined, step):
            part = slice(top, min(top + step, joined))
            result = product(matrix[part], tile.right, len(tile), frame, form)
            if query.ignore is not None:
                _hide(result, query.ignore[here[part]] - t * width, form.infinite)
            torch.amin(result, 1, out=low[part])
        lowest[t, here] = low
        reached[here] = t + 1
        if query.upper is None:
            continue
        reach = bounds[here].reach(tile.certificate.worst(), low, frame.scale)
        upper[here] = torch.minimum(upper[here], reach)
        kept = upper[alive] >= query.floor
        if int(kept.sum()) < _KEEP * len(alive):
            alive = alive[kept]
            memory = frame.scratch("sweep", len(alive), matrix.shape[1], matrix)
            matrix = torch.index_select(left.sketch.left, 0, alive, out=memory)
    return lowest, upper, reached


def _hide(result: Tensor, column: Tensor, infinite: float) -> None:
    """Sets one entry of each row to `infinite`, if its column exists in `result`."""
    rows = ((column >= 0) & (column < result.shape[1])).nonzero()[:, 0]
    result[rows, column[rows]] = infinite


def _pairs(
    left: Side, tile: Columns, rows: Tensor, level: Tensor, query: Query, start: int, frame: Frame
) -> Iterator[Pairs]:
    """Yields the pairs of these left rows with one tile that can matter. Tries a longer format if they are many."""
    if len(rows) == 0:
        return
    form, others = left.sketch.certificate.format, tile.certificate.worst()
    bounds, level, k = left.sketch.certificate[rows], level[rows], query.k
    gathered = frame.scratch("pairs", len(rows), left.sketch.left.shape[1], left.sketch.left)
    torch.index_select(left.sketch.left, 0, rows, out=gathered)
    result = product(gathered, tile.right, len(tile), frame, form)
    if query.earlier:
        result.masked_fill_(torch.arange(len(tile), device=rows.device) >= rows[:, None], form.infinite)
    ignore = None if query.ignore is None else query.ignore[rows] - start
    if ignore is not None:
        _hide(result, ignore, form.infinite)
    if k is not None and k <= len(tile):
        level = torch.minimum(level, bounds.reach(others, _kth(result, k), frame.scale))
    i, j = nonzero(result <= bounds.cut(others, level, frame.scale)[:, None])
    if ignore is not None:
        counts = j != ignore[i]
        i, j = i[counts], j[counts]
    if query.earlier:
        counts = j < rows[i]
        i, j = i[counts], j[counts]
    longer = LONGER.get(form.name)
    if longer is not None and len(i) > _CROWDED * (k or 1) * len(rows):
        sure = 0
        if k is None:
            sure = int((result < bounds.surely(others, level, frame.scale)[:, None]).sum())
        if len(i) - sure > _CROWDED * (k or 1) * len(rows):
            assert not query.earlier or len(rows) == len(tile)
            again = left.again(frame, longer, rows), tile.again(frame, longer)
            for i, j, distance in contenders(*again, Query(level, k, earlier=query.earlier, ignore=ignore), frame):
                yield rows[i], j, distance
            return
    if len(i):
        distance = pair_distances(left.rows, left.numbers(rows[i]), tile.rows, tile.numbers(j))
        bounds[i].check(tile.certificate[j], result[i, j], distance, frame.scale)
        yield rows[i], j, distance


def _kth(result: Tensor, k: int) -> Tensor:
    """At least the k-th smallest entry of each row. Where k is small, the k-th smallest of the minima of groups of
    columns, because kthvalue takes long; few rows have two of their k smallest entries in one group."""
    each = result.shape[1] // _GROUPS
    if k > 1 and each > 1 and 4 * k <= _GROUPS:
        result = result[:, : each * _GROUPS].reshape(len(result), each, _GROUPS).amin(1)
    return result.amin(1) if k == 1 else result.kthvalue(k, dim=1).values


def nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the true entries; numpy's search is ten times faster than torch's on a CPU."""
    if mask.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
        return flat // mask.shape[1], flat % mask.shape[1]
    i, j = mask.nonzero().unbind(1)
    return i, j
