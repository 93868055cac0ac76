"""The pairs that can matter: products in low precision show which distances must be computed.

    Sketch (left rows) + Columns (right rows) + Query -> contenders -> pairs with their canonical distances

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
from entroloop.selection.exact.sketch import ON_GPU, Certificate, Columns, Frame, Sketch, product, tile_columns

TILE_ROWS = 2048
SWEEP_ROWS = 8192  # left rows compared with all right rows in one sweep
_GROUPS = 64  # groups of columns whose minima bound the k-th smallest product
_CROWDED = 4  # contenders per row above which a longer format is cheaper than computing the distances
_WAITING = 1 << 18  # pairs that wait for the end of a sweep, when fewer of them may matter


@dataclass(frozen=True)
class Query:
    """Says which pairs (i, j) of left and right rows matter.

    level   [n] float64: pairs further apart than level[i] do not matter
    start   [n] int64, ascending: left row i has already been compared with the right rows before start[i]
    k       only the k nearest right rows of each left row matter, ties included; None: all within the level
    before  [n] int64, ascending: only the right rows before before[i] matter
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
    before: Tensor | None = None
    ignore: Tensor | None = None
    done: Tensor | None = None

    def part(self, part: slice) -> Query:
        tensors = (self.upper, self.resume, self.start, self.before, self.ignore, self.done)
        return Query(self.level[part], self.k, self.floor, *(None if x is None else x[part] for x in tensors))


Pairs = tuple[Tensor, Tensor, Tensor]  # left rows int64 [P], right rows int64 [P], distances float64 [P]


def tile_rows(device: torch.device) -> int:
    """Left rows per product on that device."""
    return TILE_ROWS * (ON_GPU if device.type == "cuda" else 1)


def contenders(
    left: Sketch, right: Columns, query: Query, frame: Frame, lowest: Tensor | None = None
) -> Iterator[Pairs]:
    """Yields pairs with their canonical distances. Every pair that can matter is among them.

    lowest  [tiles, n]: the smallest product of each row in each tile, from `lowest_both`
    """
    if lowest is None and query.k is not None and query.k > 1 and query.before is None:
        lowest, _ = lowest_both(left, right, frame, ignore=query.ignore)
    for top in range(0, len(left), SWEEP_ROWS):
        rows = slice(top, top + SWEEP_ROWS)
        known = None if lowest is None else lowest[:, rows]
        for i, j, distance in _Sweep(left.take(rows), right, query.part(rows), frame, known).pairs():
            yield i + top, j, distance


def lowest_both(
    left: Sketch, right: Columns, frame: Frame, same: bool = False, ignore: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The smallest products in both directions, from one product per pair. For `contenders` without `upper`.

    same    left and right are the same rows; each pair of two tiles is multiplied once
    ignore  as in Query
    ->      of each left row in each tile of right rows [tiles, n]; of each right row in each tile of left rows
    """
    form, device = left.certificate.format, left.rows.device
    tiles, n, width = right.tiles(), len(left), tile_columns(device)
    rowwise = torch.full((len(tiles), n), form.infinite, dtype=form.compared, device=device)
    columnwise = rowwise
    if not same:
        columnwise = rowwise.new_full((-(-n // width), len(right)), form.infinite)
    step = max(1, tile_rows(device) // width) * width
    for t, tile in enumerate(tiles):
        columns = slice(t * width, t * width + len(tile))
        for top in range(columns.start if same else 0, n, step):
            rows = slice(top, min(top + step, n))
            result = product(left.factor(rows, frame), tile.right, len(tile), frame, form)[: rows.stop - top]
            if ignore is not None:
                _hide(result, ignore[rows] - columns.start, form.infinite)
            rowwise[t, rows] = result.amin(1)
            for part in range(top, rows.stop, width):
                columnwise[part // width, columns] = result[part - top : part - top + width].amin(0)
    return rowwise, columnwise


class _Sweep:
    """Left rows that are compared with all right rows, tile by tile. `level` falls on the way.

    Pairs wait until the end, when the level has fallen and most of them no longer matter.
    """

    def __init__(self, left: Sketch, right: Columns, query: Query, frame: Frame, known: Tensor | None) -> None:
        self.left, self.right, self.query, self.frame, self.known = left, right, query, frame, known
        self.tiles, self.width = right.tiles(), tile_columns(left.rows.device)
        worst = torch.cat([tile.certificate.worst().values for tile in self.tiles])
        self.worst = Certificate(worst, left.certificate.format)  # of each tile
        self.level = query.level.clone()
        self.given = torch.zeros(len(left), dtype=torch.bool, device=self.level.device)  # rows that have given pairs
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # left rows, right rows, products

    def pairs(self) -> Iterator[Pairs]:
        query, everything = self.query, torch.arange(len(self.left), device=self.level.device)
        reached = torch.zeros_like(everything)  # right rows compared
        relevant = None if self.known is None else self._relevant(self.known)
        alive = everything
        for t in range(len(self.tiles)):
            here = alive if relevant is None else relevant[t].nonzero()[:, 0]
            if query.start is not None:
                here = here[: int(torch.searchsorted(query.start[here], (t + 1) * self.width))]
            if query.before is not None:
                here = here[int(torch.searchsorted(query.before[here], t * self.width, right=True)) :]
            if query.done is not None:
                here = here[~query.done[here]]
            for rows in torch.split(here, tile_rows(here.device)) if len(here) else ():
                yield from self._compare(t, rows)
            if query.upper is not None:
                reached[here] = (t + 1) * self.width
                alive = alive[self.level[alive] >= query.floor]
            if sum(len(i) for i, _, _ in self.waiting) > _WAITING:
                yield from self._give(*self._near())
        i, j, result = self._near()
        if query.upper is not None:
            kept = ~self._settle(i, j, reached)[i]
            i, j, result = i[kept], j[kept], result[kept]
        yield from self._give(i, j, result)

    def _relevant(self, known: Tensor) -> Tensor:
        """Lowers the level by the smallest products. -> which tiles can hold a pair of each row, bool [tiles, n]"""
        k, bounds = self.query.k, self.left.bounds(slice(None))
        others = Certificate(self.worst.values[:, None], self.worst.format)
        if k is not None and k <= len(known):
            reach = bounds.reach(others, known, self.frame.scale)
            self.level = torch.minimum(self.level, reach.kthvalue(k, dim=0).values if k > 1 else reach.amin(0))
        return known <= bounds.cut(others, self.level, self.frame.scale)

    def _compare(self, t: int, rows: Tensor) -> Iterator[Pairs]:
        """Compares left rows with a tile. Yields the pairs if they are so many that a longer format is tried."""
        tile, others, start, scale = self.tiles[t], self.worst[t : t + 1], t * self.width, self.frame.scale
        k, bounds, level = self.query.k, self.left.bounds(rows), self.level[rows]
        form = bounds.format
        result = product(self.left.factor(rows, self.frame), tile.right, len(tile), self.frame, form)[: len(rows)]
        before = None if self.query.before is None else self.query.before[rows] - start
        ignore = None if self.query.ignore is None else self.query.ignore[rows] - start
        if before is not None:
            ragged = int(torch.searchsorted(before, len(tile)))
            later = torch.arange(len(tile), device=rows.device) >= before[:ragged, None]
            result[:ragged].masked_fill_(later, form.infinite)
        if ignore is not None:
            _hide(result, ignore, form.infinite)
        if k is not None and k <= len(tile):
            level = torch.minimum(level, bounds.reach(others, _kth(result, k), scale))
            self.level[rows] = level
        i, j = at_most(result, bounds.cut(others, level, scale))
        if ignore is not None or before is not None:  # a hidden pair is within an infinite level
            counts = torch.ones_like(i, dtype=torch.bool) if ignore is None else j != ignore[i]
            counts &= True if before is None else j < before[i]
            i, j = i[counts], j[counts]
        longer, most = LONGER.get(form.name), _CROWDED * (k or 1) * len(rows)
        if longer is not None and len(i) > most:
            sure = 0 if k else int((result < bounds.surely(others, level, scale)[:, None]).sum())
            if len(i) - sure > most:
                again = self.left.again(self.frame, longer, rows), tile.again(self.frame, longer)
                query = Query(level, k, before=before, ignore=ignore)
                for i, j, distance in contenders(*again, query, self.frame):
                    self.given[rows[i]] = True
                    self._check_known(rows[i], torch.full_like(i, t), distance)
                    yield rows[i], j + start, distance
                return
        self.waiting.append((rows[i], j + start, result[i, j]))

    def _near(self) -> tuple[Tensor, Tensor, Tensor]:
        """Takes those of the waiting pairs that are still within the level: left rows, right rows, products."""
        none = torch.empty(0, dtype=torch.int64, device=self.level.device)
        empty = none, none, none.to(self.left.certificate.format.compared)
        i, j, result = (torch.cat(part) for part in zip(empty, *self.waiting, strict=True))
        self.waiting = []
        if self.query.k is not None:
            cut = self.left.bounds(i).cut(self.right.certificate[j], self.level[i], self.frame.scale)
            near = result <= cut
            i, j, result = i[near], j[near], result[near]
        return i, j, result

    def _settle(self, i: Tensor, j: Tensor, reached: Tensor) -> Tensor:
        """Writes the query's `upper` and `resume`. -> the rows that need no distances of these pairs now, bool [n].

        A row settled by a single tile can be resumed at that tile if it is needed again. Others are finished now.
        """
        query, t = self.query, j // self.width
        assert query.upper is not None
        assert query.resume is not None
        first = torch.full_like(reached, len(self.tiles)).scatter_reduce_(0, i, t, "amin")
        last = torch.full_like(reached, -1).scatter_reduce_(0, i, t, "amax")
        settled = (self.level < query.floor) & (first == last) & ~self.given
        query.upper[settled] = self.level[settled]
        query.resume[:] = torch.where(settled, first * self.width, reached.clamp(max=query.resume))
        return settled

    def _give(self, i: Tensor, j: Tensor, result: Tensor) -> Iterator[Pairs]:
        if len(i):
            self.given[i] = True
            distance = pair_distances(self.left.rows, self.left.numbers(i), self.right.rows, self.right.numbers(j))
            self.left.bounds(i).check(self.right.certificate[j], result, distance, self.frame.scale)
            self._check_known(i, j // self.width, distance)
            yield i, j, distance

    def _check_known(self, i: Tensor, t: Tensor, distance: Tensor) -> None:
        """Checks the products that are known from elsewhere against the smallest distances within the level."""
        if self.known is None:
            return
        nearest = torch.full(self.known.shape, torch.inf, dtype=torch.float64, device=distance.device)
        nearest.view(-1).scatter_reduce_(0, t * len(self.left) + i, distance, "amin")
        t, i = (torch.isfinite(nearest) & (nearest <= self.level)).nonzero().unbind(1)
        self.left.bounds(i).check(self.worst[t], self.known[t, i], nearest[t, i], self.frame.scale)


def _hide(result: Tensor, column: Tensor, infinite: float) -> None:
    """Sets one entry of each row to `infinite`, if its column exists in `result`."""
    rows = ((column >= 0) & (column < result.shape[1])).nonzero()[:, 0]
    result[rows, column[rows]] = infinite


def _kth(result: Tensor, k: int) -> Tensor:
    """At least the k-th smallest entry of each row. Where k is small, the k-th smallest of the minima of groups of
    columns, because kthvalue takes long; few rows have two of their k smallest entries in one group."""
    each = result.shape[1] // _GROUPS
    if k > 1 and each > 1 and 4 * k <= _GROUPS:
        result = result[:, : each * _GROUPS].reshape(len(result), each, _GROUPS).amin(1)
    return result.amin(1) if k == 1 else result.kthvalue(k, dim=1).values


def at_most(result: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries of `result` [n, m] that are at most cut[row]."""
    if result.device.type != "cpu":
        return nonzero(result <= cut[:, None])
    # numpy compares five times faster than torch, and the minimum of a row, which is faster still, rules most rows out
    rows = (result.amin(1) <= cut).nonzero()[:, 0]
    near = np.less_equal(result.index_select(0, rows).numpy(), cut[rows, None].numpy())
    i, j = nonzero(torch.from_numpy(near))
    return rows[i], j


def nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the true entries; numpy's search is ten times faster than torch's on a CPU."""
    if mask.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
        return flat // mask.shape[1], flat % mask.shape[1]
    i, j = mask.nonzero().unbind(1)
    return i, j
