"""Threshold filters without hand-tuned numbers: by a strength, or by the spread of real data.

    Problem -> adaptive_threshold(strength) -> Selection          Problem + reference -> entropy_matching -> Selection

Two distances of the data set the scale. `low` is the 1 % quantile of the nearest-neighbour distances of N random
rows; a filter with that threshold rejects next to nothing. `high` is the radius at which greedy reaches N rows; the
closest pair of any N rows is at most twice `high` apart. The threshold is low + strength (high - low). So in every
feature space strength 0 is about random and strength 1 is about greedy, and scaling the features scales the threshold.
One pass reaches N rows for every threshold below high / 2, because greedy's N picks are pairwise at least `high` apart,
and each of them needs an accepted row of its own within the threshold. With a larger threshold a pass may accept fewer
than N rows. Then the threshold falls by 5 % per pass until N rows are accepted.

Shapes: N rows chosen, R rows of a reference, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.neighbours import nearest
from entroloop.selection.rules.greedy import greedy
from entroloop.selection.rules.problem import Problem, Selection
from entroloop.selection.rules.threshold import threshold_decay

DECAY = 0.95
_LOW_QUANTILE = 0.01
_MATCHED = np.linspace(0.1, 0.9, 9)  # the quantiles that entropy_matching compares
_STEPS = 10  # of the search: both ends, then 8 halvings of the range
_TOLERANCE = 0.002  # in the mean log distance


def adaptive_threshold(problem: Problem, *, strength: float = 0.5) -> Selection:
    """A filter between random (strength 0) and greedy (strength 1) that chooses exactly `problem.size` rows."""
    order = problem.order()
    low, high = _scale(problem, order)
    return _filtered(problem, order, low + strength * (high - low), strength=strength)


def entropy_matching(problem: Problem) -> Selection:
    """The strength at which nearest-neighbour distances of the chosen rows match those of the reference at equal n.

    A bisection over the strength of `adaptive_threshold` matches the mean of the log quantiles (10 % to 90 %), because
    all quantiles grow with the strength. If random rows already spread more than the reference, the strength is 0. If
    the strongest filter spreads less, the strength is 1. `info["gap"]` is the remaining difference of the means.
    Without a reference this is `adaptive_threshold`. Raises UserError for a reference of fewer than 2 rows, or, with a
    reference, for a size below 2.
    """
    if problem.reference is None:
        return adaptive_threshold(problem)
    if problem.reference.total < 2 or problem.size < 2:
        raise UserError("entropy-matching: needs at least 2 rows of reference and a size of at least 2")
    n = min(problem.size, problem.reference.total)
    draw = problem.generator("reference").permutation(problem.reference.total)[:n]
    target = _log_quantiles(problem.reference, torch.from_numpy(draw))
    order = problem.order()
    low, high = _scale(problem, order)
    weakest, strongest, strength = 0.0, 1.0, 0.5
    for step in range(_STEPS):
        strength = (0.0, 1.0)[step] if step < 2 else (weakest + strongest) / 2
        chosen = _filtered(problem, order, low + strength * (high - low), strength=strength)
        sample = problem.generator("matching").permutation(problem.size)[:n]
        near = _log_quantiles(problem.candidates, torch.from_numpy(chosen.ids[sample]))
        # Logarithms differ in the last bit between processors, so every rank uses rank 0's gap.
        gap = float(problem.candidates.world.broadcast(torch.tensor([(near - target).mean()], dtype=torch.float64)))
        chosen.info["gap"] = gap
        if abs(gap) <= _TOLERANCE or (step == 0 and gap > 0) or (step == 1 and gap < 0):
            break
        if step >= 2:
            weakest, strongest = (strength, strongest) if gap < 0 else (weakest, strength)
    return chosen


def _scale(problem: Problem, order: Tensor) -> tuple[float, float]:
    """`low` and `high` of the module's docstring."""
    if problem.size < 2:
        return 0.0, 0.0
    near = _neighbour_distances(problem.candidates, order[: problem.size])
    _, radii = greedy(problem.candidates, problem.size, int(order[0]))
    high = float(radii[-1])
    return min(float(np.quantile(near, _LOW_QUANTILE)), high), high


def _filtered(problem: Problem, order: Tensor, threshold: float, strength: float) -> Selection:
    ids, radii = threshold_decay(
        problem.candidates, problem.size, order, max(threshold, float(np.nextafter(0, 1))), DECAY
    )
    return problem.selection(ids, radii, threshold=threshold, strength=strength)


def _neighbour_distances(own: RankRows, ids: Tensor) -> NDArray[np.float64]:
    """The distance of each of these rows to the nearest other of them, on every rank. int64 [n] -> float64 [n]."""
    world = own.world
    rows = own.take(ids.to(own.rows.device))
    mine = world.share(len(rows))
    distances, _ = nearest(rows[mine], rows[mine], exclude_self=True, world=world)
    return world.gather_rows(torch.from_numpy(distances[:, 0])).numpy()


def _log_quantiles(own: RankRows, ids: Tensor) -> NDArray[np.float64]:
    near = np.quantile(_neighbour_distances(own, ids), _MATCHED)
    out: NDArray[np.float64] = np.log(np.maximum(near, 1e-300))
    return out
