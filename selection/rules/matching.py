"""Covariance matching: rows whose mean and covariance match those of a reference (after arXiv 2510.08123).

    Problem (+ reference; else the candidates themselves) -> covariance_matching -> Selection

The rows u are whitened by the reference and reduced to its Q strongest directions, so the target is mean 0 and
covariance I. Herding then keeps the sums of u and u u^T of the chosen rows close to their targets: from a window of the
seeded order it takes the row that brings the sums nearest to the targets in the Frobenius norm. Rank 0 alone chooses,
on the gathered [N, Q] array, and sends its choice to the others, because processors differ in the last bits of a sum
and could decide a near-tie differently.

Shapes: N candidates, Q directions, W rows of the window, M chosen.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.selection.exact.distance import bad_row_error, first_bad_row
from entroloop.selection.exact.spaces import fit_metric
from entroloop.selection.rules.problem import Problem, Selection

_LARGEST = 1e70  # of a whitened value: sums of fourth powers stay finite


def covariance_matching(problem: Problem, *, directions: int = 32, window: int = 64) -> Selection:
    """directions: number of principal directions of the reference used; window: number of candidates per pick.

    Raises UserError for a row that the whitening takes beyond 1e70.
    """
    reference = problem.reference or problem.candidates
    whiten = fit_metric("whitened", reference).rows
    rows = whiten(problem.candidates.rows)[:, -directions:].contiguous()
    world = problem.candidates.world
    rows = world.gather_rows(rows, problem.candidates.counts)
    if bad := first_bad_row(rows, _LARGEST):
        raise bad_row_error("features: whitened by the reference", *bad, _LARGEST)
    u = rows.cpu().numpy()
    chosen, gap = _herded(u, problem.order().numpy().copy(), problem.size, window) if world.is_main else (None, 0.0)
    world.barrier()
    ids = torch.from_numpy(chosen) if chosen is not None else torch.empty(problem.size, dtype=torch.int64)
    ids, gaps = world.broadcast(ids), world.broadcast(torch.tensor([gap], dtype=torch.float64))
    return problem.selection(ids, covariance_gap=float(gaps))


def _herded(
    u: NDArray[np.float64], waiting: NDArray[np.int64], size: int, window: int
) -> tuple[NDArray[np.int64], float]:
    """`size` of the `waiting` ids, int64 [M] in the order chosen, and the gap |I - mean of u u^T| / sqrt(Q)."""
    left, turn = len(waiting), 0  # waiting[:left] are not chosen yet; the window moves round through them
    q = u.shape[1]
    first, second = np.zeros(q), np.zeros((q, q))  # target minus sum over the chosen rows
    chosen = np.empty(size, dtype=np.int64)
    for j in range(size):
        second += np.eye(q)
        places = (turn + np.arange(min(window, left))) % left
        candidates = u[waiting[places]]
        norms = (candidates * candidates).sum(1)
        # |R - u u^T|^2 + |r - u|^2 without the terms that are equal for all
        score = norms**2 + norms - 2 * ((candidates @ second) * candidates).sum(1) - 2 * candidates @ first
        best = int(score.argmin())
        chosen[j] = waiting[places[best]]
        first -= candidates[best]
        second -= np.outer(candidates[best], candidates[best])
        left -= 1
        waiting[places[best]] = waiting[left]
        turn = (turn + window) % max(left, 1)
    return chosen, float(np.linalg.norm(second / size) / np.sqrt(q))
