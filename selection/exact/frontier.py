"""The distance of every row to the points chosen so far, kept up only where it can matter.

    Shard + chosen points  ->  Frontier  ->  exact distances of the rows that are still in the running

`bound[i]` is the canonical distance of local row i to the first `seen[i]` choices: an upper bound on its distance to
all of them, since that only falls. A row whose bound is below the level that decides at present needs no work at all.
It is brought up to date (`refresh`) once the level has sunk to its bound, and dropped again at the first choice that
puts it below the level. Rows in the running (`active`) follow every block of choices (`admit`).

Shapes: n local rows, D features, C choices, a active rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from entroloop.selection.exact.bounds import SWEEP_ROWS, Query, contenders
from entroloop.selection.exact.distance import distances_to
from entroloop.selection.exact.rows import Shard
from entroloop.selection.exact.sketch import Columns, Frame, Side, Sketch, shortest_format

CHOSEN = -1.0  # the bound of a row that is chosen: below every distance
_KEEP = 0.7  # share of the gathered active rows that must still be active for the gathered copy to be kept


class Frontier:
    """See the module's docstring. `capacity` is the largest number of choices."""

    def __init__(self, shard: Shard, capacity: int) -> None:
        self.shard = shard
        rows = shard.rows
        self.frame = Frame.of(rows, shard.world)
        self.form = shortest_format(rows)
        self.sketch = Sketch.of(rows, self.frame, self.form)
        self.bound = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
        self.seen = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        self.chosen = torch.empty(capacity, dtype=torch.int64, device=rows.device)  # global ids
        self.count = 0
        # With several ranks the choices' rows are kept too; a single rank finds all of them among its own.
        self._rows = rows.new_empty((capacity, rows.shape[1])) if shard.world.size > 1 else None
        room = Sketch.empty(self.form.padded(capacity) + 128, rows, self.form)
        self._right, self._certificate = room.left.zero_(), room.certificate
        self.active = torch.empty(0, dtype=torch.int64, device=rows.device)
        self._gathered: tuple[Tensor, Sketch] | None = None

    def side(self, ids: Tensor, rows: Tensor | None) -> Side:
        """Points by global id, with their sketch; `rows` holds them where there are several ranks."""
        if rows is None or self._rows is None:
            return Side(self.shard.rows, self.sketch[ids], ids)
        return Side(rows, Sketch.of(rows, self.frame, self.form))

    def choices(self, first: int, last: int) -> Columns:
        """The choices numbered first .. last - 1."""
        part = slice(first, last)
        right = self._right[first : first + self.form.padded(last - first)]
        if self._rows is None:
            return Columns(self.shard.rows, right, self._certificate[part], self.chosen[part])
        return Columns(self._rows[part], right, self._certificate[part])

    def begin(self, pick: int) -> None:
        """The first choice: one column of distances for all rows."""
        ids = torch.tensor([pick], device=self.bound.device)
        row = self.shard.take(ids)
        self._remember(ids, self.side(ids, row))
        self.bound = distances_to(self.shard.rows, row[0])
        self.seen += 1
        self._mark(ids)

    def admit(self, ids: Tensor, side: Side, level: float) -> None:
        """Adds choices and brings the active rows up to date; those chosen, or below `level`, stop being active."""
        first = self.count
        self._remember(ids, side)
        self._mark(ids)
        self.keep_active(level)
        if len(self.active):
            side = self._active_side()
            self._apply(side, first, self.count, level)
            self.keep_active(level)

    def fill(self, order: Tensor) -> None:
        """Completes the choices, up to the capacity, by the first ids in this order that are not chosen yet."""
        free = torch.ones(self.shard.total, dtype=torch.bool)
        free[self.chosen[: self.count].cpu()] = False
        self.chosen[self.count :] = order[free[order]][: len(self.chosen) - self.count].to(self.chosen.device)
        self.count = len(self.chosen)

    def keep_active(self, level: float) -> None:
        """Lets go of active rows whose bound is below `level`."""
        self.active = self.active[self.bound[self.active] >= level]

    def activate(self, rows: Tensor) -> None:
        """Makes these local rows, which are up to date, the active ones."""
        self.active = rows
        self._gathered = None

    def refresh(self, rows: Tensor, level: float) -> Tensor:
        """Brings local rows up to date; returns those whose bound stays at or above `level`, in the order given.

        Rows that fall below keep an upper bound, and `seen` stays before the choice that it comes from: should they be
        needed again, that choice is looked at once more and gives the exact distance.
        """
        if len(rows) == 0:
            return rows
        order = torch.argsort(self.seen[rows], stable=True)
        for part in torch.split(rows[order], SWEEP_ROWS):
            self._apply(self._gather(part), int(self.seen[part[0]]), self.count, level, True)
        return rows[self.bound[rows] >= level]

    def _gather(self, rows: Tensor) -> Side:
        sketch = self.sketch
        left = self.frame.scratch("gathered", len(rows), sketch.left.shape[1], sketch.left)
        torch.index_select(sketch.left, 0, rows, out=left)
        return Side(self.shard.rows, Sketch(left, sketch.certificate[rows]), rows)

    def _apply(self, left: Side, first: int, last: int, level: float, sorted_by_seen: bool = False) -> None:
        """Lowers the bounds of the left rows by choices first .. last - 1, exactly where they stay above `level`."""
        index = left.index
        assert index is not None
        if first >= last:
            return
        right, bound, seen = self.choices(first, last), self.bound[index], self.seen[index]
        upper, resume = torch.full_like(bound, torch.inf), torch.full_like(index, last - first)
        start = (seen - first).clamp(min=0)
        query = Query(bound, 1, level, upper, resume, start if sorted_by_seen else None)
        for i, _, distance in contenders(left, right, query, self.frame):
            self.bound.scatter_reduce_(0, index[i], distance, "amin")
        self.bound.scatter_reduce_(0, index, upper, "amin")
        current = seen >= first  # others were let go before: choices in between are still to come for them
        self.seen[index[current]] = first + resume[current]

    def _active_side(self) -> Side:
        """The active rows with a gathered copy of their sketch, which may hold some that were let go meanwhile."""
        if self._gathered is None or len(self.active) < _KEEP * len(self._gathered[0]):
            self._gathered = self.active, self.sketch[self.active]
        index, sketch = self._gathered
        return Side(self.shard.rows, sketch, index)

    def _remember(self, ids: Tensor, side: Side) -> None:
        part = slice(self.count, self.count + len(ids))
        self.chosen[part] = ids
        if self._rows is not None:
            self._rows[part] = side.rows
        side.sketch.turned(self._right[part])
        self._certificate.square[part] = side.sketch.certificate.square
        self._certificate.rho[part] = side.sketch.certificate.rho
        self.count += len(ids)

    def _mark(self, ids: Tensor) -> None:
        _, local = self.shard.owned(ids)
        self.bound[local] = CHOSEN
