"""The distance of every row to the points chosen so far, kept up to date only for rows where it can matter.

    RankRows + chosen points  ->  Frontier  ->  exact distances of the active rows

`bound[i]` is an upper bound of the distance of local row i to all choices: its canonical distance to the first
`seen[i]` choices or, for a row that was dropped, a bound from a later choice. Further choices only lower the distance,
so a row whose bound is below the present level needs no work. Once the level has fallen to the bound, `refresh` brings
the row up to date, and drops it again at the first choice that puts it below the level. `admit` updates the active rows
with every block of choices.

Shapes: n local rows, D features, C choices, a active rows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from entroloop.selection.exact.blocks import earlier_distances
from entroloop.selection.exact.bounds import SWEEP_ROWS, Sweep
from entroloop.selection.exact.distance import distances_to, pair_distances
from entroloop.selection.exact.formats import shortest_format
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.exact.sketch import Frame, Sketch

CHOSEN = -1.0  # the bound of a chosen row: below every distance


class Frontier:
    """See the module's docstring. `capacity` is the largest number of choices."""

    def __init__(self, own: RankRows, capacity: int) -> None:
        self.own = own
        rows = own.rows
        self.sketch = Sketch.of(rows, Frame.of(rows, own.world), shortest_format(rows))
        self.bound = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
        self.seen = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        self.chosen = torch.empty(capacity, dtype=torch.int64, device=rows.device)  # global ids
        self.count = 0
        self.active = torch.empty(0, dtype=torch.int64, device=rows.device)
        form = self.sketch.form
        room = Sketch.empty(form.padded(capacity) + 128, rows, self.sketch.frame, form)
        room.factor.zero_()
        # With several ranks the choices' rows are kept too; a single rank has all of them among its own rows.
        kept = (rows, self.chosen) if own.world.size == 1 else (rows.new_empty((capacity, rows.shape[1])), None)
        self._choices = replace(room, rows=kept[0], index=kept[1], turned=True)

    def points(self, ids: Tensor, rows: Tensor | None) -> Sketch:
        """The points with these global ids. With several ranks `rows` holds the points, [B, D]."""
        if rows is None or self._choices.index is not None:
            return self.sketch.take(ids)
        return Sketch.of(rows, self.sketch.frame, self.sketch.form)

    def begin(self, pick: int) -> None:
        """Makes the first choice: computes the distance of every row to it."""
        ids = torch.tensor([pick], device=self.bound.device)
        row = self.own.take(ids)
        self._remember(ids, self.points(ids, row))
        self.bound = distances_to(self.own.rows, row[0])
        self.seen += 1
        self._mark(ids)

    def admit(self, ids: Tensor, points: Sketch, level: float) -> None:
        """Adds choices and updates the active rows. Rows that are chosen, or fall below `level`, stop being active.

        The last choices update nothing, because no choice follows.
        """
        first = self.count
        self._remember(ids, points)
        if self.count == len(self.chosen):
            return
        self._mark(ids)
        self.keep_active(level)
        if len(self.active):
            for part in torch.split(self.active, SWEEP_ROWS):
                self._apply(part, first, level)
            self.keep_active(level)

    def reject(self, ids: Tensor, by: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Lowers the bounds of rows that are within a threshold of the choices numbered `by`, which may be admitted
        later. -> the local rows among them and their choices, for `distances`"""
        place, local = self.own.owned(ids)
        self.bound[local] = threshold
        return local, by[place]

    def distances(self, local: Tensor, by: Tensor) -> Tensor:
        """The canonical distances of local rows to the choices numbered `by`."""
        return pair_distances(self.own.rows, local, self._choices.rows, self._choices.numbers(by))

    def earlier(self, first: int, level: Tensor) -> Tensor:
        """For each choice from `first` on min(level, its distance to the nearest of these choices before it)."""
        right = self._choices.take(slice(first, self.count))
        return earlier_distances(right.turn_back(), right, level)

    def fill(self, order: Tensor) -> None:
        """Fills the choices up to the capacity with the first ids in this order that are not chosen yet."""
        free = torch.ones(self.own.total, dtype=torch.bool)
        free[self.chosen[: self.count].cpu()] = False
        self.chosen[self.count :] = order[free[order]][: len(self.chosen) - self.count].to(self.chosen.device)
        self.count = len(self.chosen)

    def keep_active(self, level: float) -> None:
        """Drops the active rows whose bound is below `level`."""
        self.active = self.active[self.bound[self.active] >= level]

    def activate(self, rows: Tensor) -> None:
        """Replaces the active rows by these local rows, which must be up to date."""
        self.active = rows

    def refresh(self, rows: Tensor, level: float) -> Tensor:
        """Brings local rows up to date. Returns the rows whose bound is still at least `level`, in the order given.

        A row that falls below `level` keeps an upper bound, and its `seen` stays before the choice that gave the bound.
        If the row is needed again, it is compared with that choice again, which gives the exact distance.
        """
        if len(rows) == 0:
            return rows
        order = torch.argsort(self.seen[rows], stable=True)
        for part in torch.split(rows[order], SWEEP_ROWS):
            seen = self.seen[part]
            first = int(seen[0])
            if first < self.count:
                self._apply(part, first, level, seen - first)
        return rows[self.bound[rows] >= level]

    def _apply(self, rows: Tensor, first: int, level: float, start: Tensor | None = None) -> None:
        """Lowers the bounds of local rows by the choices from `first` on. Bounds of at least `level` are exact.

        start  as in Sweep, of rows that have seen choices after `first`
        """
        bound = self.bound[rows]
        choices = self._choices.take(slice(first, self.count))
        sweep = Sweep(self.sketch.take(rows), choices, bound.clone(), floor=level, start=start)
        for i, _, distance in sweep.pairs():
            bound.scatter_reduce_(0, i, distance, "amin")
        self.bound[rows] = torch.minimum(bound, sweep.level)
        self.seen[rows] = first + sweep.resume

    def _remember(self, ids: Tensor, points: Sketch) -> None:
        part = slice(self.count, self.count + len(ids))
        self.chosen[part] = ids
        if self._choices.index is None:
            rows, index = points.rows, points.index
            self._choices.rows[part] = rows if index is None else rows.index_select(0, index)
        points.turn_into(self._choices.factor[part])
        self._choices.errors[part] = points.errors
        self.count += len(ids)

    def _mark(self, ids: Tensor) -> None:
        _, local = self.own.owned(ids)
        self.bound[local] = CHOSEN
