"""The pairs that can matter: products in low precision show which distances must be computed.

    Sketch (left rows) + turned Sketch (right rows) + levels -> contenders -> pairs with their canonical distances

A pair whose certified interval (`intervals`) is above the level is certainly no nearer than the level. For every other
pair the canonical distance is computed, and InexactProductError is raised if it is outside the interval. If a format
cannot separate the pairs, the next longer format is tried: bfloat16 -> float32 -> float64. So the format changes the
time, never the result.

Shapes: n left rows, m right rows, D features, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.formats import LONGER
from entroloop.selection.exact.intervals import check, cut, reach, surely
from entroloop.selection.exact.sketch import ON_GPU, Sketch, product, tile_columns

TILE_ROWS = 2048
SWEEP_ROWS = 8192  # left rows compared with all right rows in one sweep
_GROUPS = 64  # groups of columns whose minima bound the k-th smallest product
_CROWDED = 4  # contenders per row above which a longer format is cheaper than computing the distances
_WAITING = 1 << 18  # pairs that wait for the end of a sweep, when fewer of them may matter

Pairs = tuple[Tensor, Tensor, Tensor]  # left rows int64 [P], right rows int64 [P], distances float64 [P]


def tile_rows(device: torch.device) -> int:
    """Left rows per product on that device."""
    return TILE_ROWS * (ON_GPU if device.type == "cuda" else 1)


def contenders(
    left: Sketch,
    right: Sketch,
    level: Tensor,
    k: int | None = 1,
    *,
    before: Tensor | None = None,
    ignore: Tensor | None = None,
    lowest: Tensor | None = None,
) -> Iterator[Pairs]:
    """Yields pairs with their canonical distances, all that can matter among them. Arguments as of `Sweep`."""
    if lowest is None and k is not None and k > 1 and before is None and len(right) > tile_columns(level.device):
        lowest, _ = lowest_both(left, right, ignore=ignore)
    for top in range(0, len(left), SWEEP_ROWS):
        rows = slice(top, top + SWEEP_ROWS)
        own = (None if x is None else x[..., rows] for x in (before, ignore, lowest))
        for i, j, distance in Sweep(left.take(rows), right, level[rows], k, 0.0, None, *own).pairs():
            yield i + top, j, distance


def lowest_both(left: Sketch, right: Sketch, same: bool = False, ignore: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The smallest products in both directions, from one product per pair. For `contenders`.

    same    left and right are the same rows; each pair of two tiles is multiplied once
    ignore  as in Sweep
    ->      of each left row in each tile of right rows [tiles, n]; of each right row in each tile of left rows
    """
    form, device = left.form, left.rows.device
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
            result = product(left, tile, rows)
            if ignore is not None:
                _hide(result, ignore[rows] - columns.start, form.infinite)
            rowwise[t, rows] = result.amin(1)
            for part in range(top, rows.stop, width):
                columnwise[part // width, columns] = result[part - top : part - top + width].amin(0)
    return rowwise, columnwise


@dataclass
class Sweep:
    """Left rows that are compared with all right rows, tile by tile.

    level   [n] float64: pairs further apart than level[i] do not matter. It falls on the way, as far as certified
            distances allow. The caller may lower it too, between the pairs
    k       only the k nearest right rows of each left row matter, ties included; None: all within the level
    floor   a row whose level is below this is compared no further
    start   [n] int64, ascending: left row i has already been compared with the right rows before start[i]
    before  [n] int64, ascending: only the right rows before before[i] matter
    ignore  [n] int64: a right row that does not count for this left row, -1 for none
    lowest  [tiles, n]: the smallest product of each row in each tile, from `lowest_both`
    resume  [n] int64, after `pairs` with a floor: all right rows before this one gave a pair or are no nearer than the
            level. A row below the floor may get no pairs; its level is then an upper bound of its smallest distance
    """

    left: Sketch
    right: Sketch
    level: Tensor
    k: int | None = 1
    floor: float = 0.0
    start: Tensor | None = None
    before: Tensor | None = None
    ignore: Tensor | None = None
    lowest: Tensor | None = None
    resume: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._tiles, self._width = self.right.tiles(), tile_columns(self.level.device)
        worst = [tile.errors.amax(0)[None] for tile in self._tiles]
        self._worst = worst[0] if len(worst) == 1 else torch.cat(worst)  # of each tile
        self.resume = torch.zeros(len(self.left), dtype=torch.int64, device=self.level.device)
        self._given = torch.zeros_like(self.resume, dtype=torch.bool)  # rows that have given pairs
        # Pairs (left rows, right rows, products) wait until the level has fallen and most no longer matter.
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def pairs(self) -> Iterator[Pairs]:
        alive = torch.arange(len(self.left), device=self.level.device)
        relevant = None if self.lowest is None else self._relevant(self.lowest)
        for t in range(len(self._tiles)):
            here = alive if relevant is None else relevant[t].nonzero()[:, 0]
            if t > 0 or relevant is not None:
                here = here[self.level[here] >= self.floor]
            if relevant is None:
                alive = here
            if self.start is not None and len(self._tiles) > 1:
                here = here[: int(torch.searchsorted(self.start[here], (t + 1) * self._width))]
            if self.before is not None:
                here = here[int(torch.searchsorted(self.before[here], t * self._width, right=True)) :]
            for rows in self._parts(here):
                yield from self._compare(t, rows)
            if self.floor > 0:
                self.resume[here] = min((t + 1) * self._width, len(self.right))
            if sum(len(i) for i, _, _ in self._waiting) > _WAITING:
                i, j, result = self._near()
                self._given[i] = True
                yield from self._give(i, j, result)
        i, j, result = self._near()
        if self.floor > 0:
            kept = ~self._settle(i, j)[i]
            i, j, result = i[kept], j[kept], result[kept]
        yield from self._give(i, j, result)

    def _parts(self, here: Tensor) -> Iterable[Tensor | slice]:
        n, step = len(self.left), tile_rows(here.device)
        if len(here) == n:  # slices need no gathering
            return [slice(top, min(top + step, n)) for top in range(0, n, step)]
        return torch.split(here, step) if len(here) else ()

    def _relevant(self, lowest: Tensor) -> Tensor:
        """Lowers the level by the smallest products. -> which tiles can hold a pair of each row, bool [tiles, n]"""
        form, scale = self.left.form, self.left.frame.scale
        errors = self.left.errors + self._worst[:, None]
        if self.k is not None and self.k <= len(lowest):
            far = reach(form, errors, lowest, scale)
            torch.minimum(self.level, far.kthvalue(self.k, dim=0).values if self.k > 1 else far.amin(0), out=self.level)
        return lowest <= cut(form, errors, self.level, scale)

    def _compare(self, t: int, rows: Tensor | slice) -> Iterator[Pairs]:
        """Compares left rows with a tile. Yields the pairs if they are so many that a longer format is tried."""
        tile, start, k, level = self._tiles[t], t * self._width, self.k, self.level[rows]
        form, scale, errors = tile.form, tile.frame.scale, self.left.errors[rows] + self._worst[t]
        result = product(self.left, tile, rows)
        before = None if self.before is None else self.before[rows] - start
        ignore = None if self.ignore is None else self.ignore[rows] - start
        if before is not None:
            ragged = int(torch.searchsorted(before, len(tile)))
            later = torch.arange(len(tile), device=before.device) >= before[:ragged, None]
            result[:ragged].masked_fill_(later, form.infinite)
        if ignore is not None:
            _hide(result, ignore, form.infinite)
        nearest = None
        if k is not None and k <= len(tile):
            nearest = _kth(result, k)
            level = torch.minimum(level, reach(form, errors, nearest, scale))
            self.level[rows] = level
        i, j = at_most(result, cut(form, errors, level, scale), nearest if k == 1 else None)
        if ignore is not None or before is not None:  # a hidden pair is within an infinite level
            counts = j != ignore[i] if ignore is not None else torch.ones_like(i, dtype=torch.bool)
            if before is not None:
                counts &= j < before[i]
            i, j = i[counts], j[counts]
        longer, most = LONGER.get(form.name), _CROWDED * (k or 1) * len(result)
        if longer is not None and len(i) > most:
            sure = 0 if k else int((result < surely(form, errors, level, scale)[:, None]).sum())
            if len(i) - sure > most:
                left, right = self.left.again(longer, rows), tile.again(longer).turn()
                for i, j, distance in contenders(left, right, level, k, before=before, ignore=ignore):
                    placed = _placed(rows, i)
                    self._given[placed] = True
                    self._check_lowest(placed, torch.full_like(i, t), distance)
                    yield placed, j + start, distance
                return
        self._waiting.append((_placed(rows, i), j + start if start else j, result[i, j]))

    def _near(self) -> tuple[Tensor, Tensor, Tensor]:
        """Takes those of the waiting pairs that are still within the level: left rows, right rows, products."""
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:
            i, j, result = waiting[0]
        else:
            none = torch.empty(0, dtype=torch.int64, device=self.level.device)
            empty = none, none, none.to(self.left.form.compared)
            i, j, result = (torch.cat(part) for part in zip(empty, *waiting, strict=True))
        if self.k is not None and len(waiting) > 1:  # a single comparison has used its own levels
            near = result <= cut(self.left.form, self._errors(i, j), self.level[i], self.left.frame.scale)
            i, j, result = i[near], j[near], result[near]
        return i, j, result

    def _errors(self, i: Tensor, j: Tensor) -> Tensor:
        return self.left.errors[i] + self.right.errors[j]

    def _settle(self, i: Tensor, j: Tensor) -> Tensor:
        """Which rows need no distances of these pairs now, bool [n].

        A row settled by a single tile can be resumed at that tile if it is needed again. Others are finished now.
        """
        settled = (self.level < self.floor) > self._given
        if len(self._tiles) == 1:
            self.resume.masked_fill_(settled, 0)
            return settled
        t = j // self._width
        first = torch.full_like(self.resume, len(self._tiles)).scatter_reduce_(0, i, t, "amin")
        last = torch.full_like(self.resume, -1).scatter_reduce_(0, i, t, "amax")
        settled &= first == last
        self.resume = torch.where(settled, first * self._width, self.resume)
        return settled

    def _give(self, i: Tensor, j: Tensor, result: Tensor) -> Iterator[Pairs]:
        if len(i):
            distance = pair_distances(self.left.rows, self.left.numbers(i), self.right.rows, self.right.numbers(j))
            check(self.left.form, self._errors(i, j), result, distance, self.left.frame.scale)
            self._check_lowest(i, j // self._width, distance)
            yield i, j, distance

    def _check_lowest(self, i: Tensor, t: Tensor, distance: Tensor) -> None:
        """Checks the products that are known from elsewhere against the smallest distances within the level."""
        if self.lowest is None:
            return
        nearest = torch.full(self.lowest.shape, torch.inf, dtype=torch.float64, device=distance.device)
        nearest.view(-1).scatter_reduce_(0, t * len(self.left) + i, distance, "amin")
        t, i = (torch.isfinite(nearest) & (nearest <= self.level)).nonzero().unbind(1)
        errors, products = self.left.errors[i] + self._worst[t], self.lowest[t, i]
        check(self.left.form, errors, products, nearest[t, i], self.left.frame.scale)


def _placed(rows: Tensor | slice, i: Tensor) -> Tensor:
    """The numbers of the rows i of a part."""
    if isinstance(rows, Tensor):
        return rows[i]
    return i + rows.start if rows.start else i


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


def at_most(result: Tensor, cut: Tensor, lowest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries of `result` [n, m] that are at most cut[row]. `lowest`: its minima by row."""
    if result.device.type != "cpu":
        return nonzero(result <= cut[:, None])
    # numpy compares five times faster than torch, and the minimum of a row, which is faster still, rules most rows out
    rows = ((result.amin(1) if lowest is None else lowest) <= cut).nonzero()[:, 0]
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
