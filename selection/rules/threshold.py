"""The threshold decay filter (arXiv 2509.16499), exact, in blocks of candidates.

    RankRows + order + threshold + decay  ->  ids in the order accepted, radii

A pass visits the candidates in a given order and accepts a candidate if it is further than the threshold from every row
accepted before. After each pass the threshold is multiplied by `decay`, and the next pass visits the remaining
candidates, until enough are accepted. A pass can only accept candidates whose distance bound exceeds the threshold, so
only these are brought up to date (`frontier`). The next of these candidates, over all ranks, form a block. Every rank
resolves the conflicts inside the block in the same order, and one matrix product updates the other candidates by the
accepted rows. The ranks exchange data once per block and once per pass.

Shapes: N rows of all ranks, n rows of this rank, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.selection.exact.blocks import conflicts
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.frontier import Frontier
from entroloop.selection.exact.intervals import InexactProductError
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.exact.sketch import tile_columns
from entroloop.selection.rules.problem import Problem, Selection

BLOCK = 512
_PAIRS = 1 << 16  # random pairs that give the high quantile of the distances
_HIGH_QUANTILE = 0.95
_CHUNK = 8192  # candidates, over all ranks, that are brought up to date together


def threshold_decay(
    own: RankRows,
    size: int,
    order: Tensor,
    threshold: float,
    decay: float,
    on_progress: Callable[[int], None] = lambda new: None,
) -> tuple[Tensor, Tensor]:
    """Returns the same ids as the sequential filter in float64, at any world size.

    size       at most the number of rows of all ranks
    order      [N] int64, every global id once: the order in which candidates are visited
    threshold  positive, in units of the distance; decay  between 0 and 1
    on_progress  called after each pass with the number of rows that it accepted
    ->         ids int64 [size] in the order accepted, radii float64 [size]: distance to the rows accepted before (inf
               first). If all remaining candidates are duplicates of accepted rows, the next in order fill the result,
               with radius 0.
    """
    frontier = Frontier(own, size)
    frontier.begin(int(order[0]))
    decisions = _Decisions(frontier, size)
    _, local = own.owned(order)  # this rank's rows in the order of candidates
    local = local.to(frontier.bound.device)
    position = torch.empty(own.total, dtype=torch.int64)
    position[order] = torch.arange(own.total)
    while frontier.count < size:
        bound = frontier.bound[local]
        top = bound.amax()[None] if len(bound) else bound.new_zeros(1)
        highest = float(own.world.all_reduce(top, "max"))
        if highest == 0:
            decisions.confirm()
            decisions.radii[frontier.count :] = 0.0
            frontier.fill(order)
            return frontier.chosen.cpu(), decisions.radii
        while threshold >= highest:  # passes that would accept nothing
            threshold *= decay
        before = frontier.count
        _pass(frontier, local[bound > threshold], position, threshold, decisions)
        on_progress(frontier.count - before)
        threshold *= decay
    decisions.confirm()
    return frontier.chosen.cpu(), decisions.radii


class _Decisions:
    """What the products inside blocks decided, until canonical distances confirm it, for many blocks at once.

    `radii` are those of the accepted rows, float64 on the host. Until `confirm` those of the last rows are only the
    distances to the rows accepted before the row's own block.
    """

    def __init__(self, frontier: Frontier, size: int) -> None:
        self.radii = torch.full((size,), torch.inf, dtype=torch.float64)
        self._frontier = frontier
        self._threshold = torch.zeros_like(self.radii)  # at which each row was accepted
        self._confirmed = 1  # number of accepted rows that are confirmed
        self._rejected: list[tuple[Tensor, Tensor]] = []  # rows of this rank, and the accepted rows that exclude them

    def reject(self, ids: Tensor, by: Tensor, threshold: float) -> None:
        self._rejected.append(self._frontier.reject(ids, by, threshold))

    def accept(self, bound: Tensor, threshold: float) -> None:
        """Takes the distances of the last choices to the choices before their block."""
        last = self._frontier.count
        part = slice(last - len(bound), last)
        self.radii[part], self._threshold[part] = bound.cpu(), threshold
        if last - self._confirmed >= tile_columns(bound.device):
            self.confirm()

    def confirm(self) -> None:
        """Raises InexactProductError if a canonical distance contradicts a decision."""
        frontier, part = self._frontier, slice(self._confirmed, self._frontier.count)
        if part.start == part.stop:
            return
        device = frontier.bound.device
        radii = frontier.earlier(part.start, self.radii[part].to(device)).cpu()
        rejected, by = (torch.cat(rows) for rows in zip(*self._rejected, strict=True))
        wrong = frontier.distances(rejected, by) > self._threshold.to(device)[by]
        if bool((radii <= self._threshold[part]).any()) or bool(wrong.any()):
            raise InexactProductError("a threshold filter's products contradict the distances of its rows")
        self.radii[part], self._confirmed, self._rejected = radii, part.stop, []


def _pass(frontier: Frontier, waiting: Tensor, position: Tensor, threshold: float, decisions: _Decisions) -> None:
    """One pass over the `waiting` rows of this rank, in order, together with those of the other ranks."""
    own = frontier.own
    level = float(np.nextafter(threshold, np.inf))
    most = -(-BLOCK * (8 if frontier.bound.device.type == "cuda" else 1) // own.world.size)
    chunk = -(-_CHUNK // own.world.size)
    size = len(decisions.radii)
    frontier.activate(waiting[:0])
    while frontier.count < size:
        while len(frontier.active) < most and len(waiting):
            fresh = frontier.refresh(waiting[:chunk], level)
            frontier.activate(torch.cat([frontier.active, fresh]))
            waiting = waiting[chunk:]
        ids, bound, rows = _propose(frontier, most, waiting, position)
        if len(ids) == 0:
            return
        points = frontier.points(ids, rows)
        accepted, rejected, by = (
            rows.to(ids.device) for rows in _resolve(conflicts(points, threshold), size - frontier.count)
        )
        decisions.reject(ids[rejected], by + frontier.count, threshold)
        frontier.admit(ids[accepted], points.take(accepted), level)
        decisions.accept(bound[accepted], threshold)


def _propose(frontier: Frontier, most: int, waiting: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The next block, the same on every rank: ids in the order of candidates, their bounds, and with several ranks
    their rows."""
    own, active = frontier.own, frontier.active[:most]
    bound = frontier.bound[active]
    if own.world.size == 1:
        return active, bound, None
    rest = frontier.active[most : most + 1] if len(frontier.active) > most else waiting[:1]
    edge = float(position[int(rest) + own.offset]) if len(rest) else np.inf
    counts = own.world.gather_counts(len(active))
    if not any(counts):
        return active, bound, None
    ids, bound, rows, edges = own.share(active, bound, counts, (edge, 0.0))
    place = position[ids.cpu()].to(ids.device)
    turn = torch.argsort(place)
    turn = turn[place[turn] < min(edges)[0]]
    return ids[turn], bound[turn], rows[turn]


def _resolve(conflict: NDArray[np.bool_], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Accepts at most `most` rows of a block, in order: the rows without a conflict with an accepted row.

    -> accepted rows; rejected rows; and for each rejected row the place, among the accepted rows, of the row that
       excludes it; int64
    """
    free = np.ones(len(conflict), dtype=np.bool_)
    by = np.full(len(conflict), -1)
    accepted: list[int] = []
    for i in range(len(conflict)):
        if free[i]:
            accepted.append(i)
            if len(accepted) == most:
                break
            excluded = i + 1 + np.flatnonzero(free[i + 1 :] & conflict[i, i + 1 :])
            free[excluded] = False
            by[excluded] = len(accepted) - 1
    rejected = np.flatnonzero(by >= 0)
    return torch.tensor(accepted), torch.from_numpy(rejected), torch.from_numpy(by[rejected])


def threshold_selection(problem: Problem, *, threshold: float = 0.0, decay: float = 0.95) -> Selection:
    """The published filter. threshold 0 means the 95 % quantile of the distances of random pairs."""
    if threshold == 0:
        threshold = _high_quantile(problem)
    ids, radii = threshold_decay(
        problem.candidates, problem.size, problem.order(), threshold, decay, problem.on_progress
    )
    return problem.selection(ids, radii, threshold=threshold, decay=decay)


def _high_quantile(problem: Problem) -> float:
    sample = problem.candidates.take(problem.order()[:1024].to(problem.candidates.rows.device))
    draw = torch.from_numpy(problem.generator("pairs").integers(len(sample), size=(2, _PAIRS))).to(sample.device)
    distances = pair_distances(sample, draw[0], sample, draw[1])
    return float(np.quantile(distances.cpu().numpy(), _HIGH_QUANTILE)) or 1.0
