"""Covariance matching: rows whose mean and covariance are those of a reference (after arXiv 2510.08123).

    Problem (+ reference; else the candidates themselves) -> covariance_matching -> Selection

Rows are whitened by the reference and cut to its Q strongest directions, so that the target is mean 0 and covariance I.
Herding then keeps the sums of u and u u^T of the chosen rows close to their targets: out of a window of the seeded
order it takes the row that brings them nearest in the Frobenius norm. Rank 0 does so on the gathered [N, Q] array and
tells the others: processors differ in the last bits of a sum, and a near-tie would go either way.

Shapes: N candidates, Q directions, W rows of the window, M chosen.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from entroloop.selection.exact.spaces import fit_metric
from entroloop.selection.rules.problem import Problem, Selection

Count = Annotated[int, Field(ge=1)]


def covariance_matching(problem: Problem, *, directions: Count = 32, window: Count = 64) -> Selection:
    """directions: how many principal directions of the reference count; window: candidates looked at for each pick."""
    reference = problem.reference or problem.shard
    whiten = fit_metric("whitened", reference).rows
    rows = whiten(problem.shard.rows)[:, -directions:].contiguous()
    u = problem.shard.world.gather_rows(rows, problem.shard.counts).cpu().numpy()
    world = problem.shard.world
    chosen, gap = _herded(u, problem.order().numpy().copy(), problem.size, window) if world.is_main else (None, 0.0)
    ids = torch.from_numpy(chosen) if chosen is not None else torch.empty(problem.size, dtype=torch.int64)
    ids, gaps = world.broadcast(ids), world.broadcast(torch.tensor([gap], dtype=torch.float64))
    return problem.selection(ids, covariance_gap=float(gaps))


def _herded(
    u: NDArray[np.float64], waiting: NDArray[np.int64], size: int, window: int
) -> tuple[NDArray[np.int64], float]:
    """`size` of the ids that are `waiting`, int64 [M] in the order chosen, and how far their covariance is from I."""
    left, turn = len(waiting), 0  # waiting[:left] are not chosen yet; the window moves through them round and round
    q = u.shape[1]
    first, second = np.zeros(q), np.zeros((q, q))  # what the chosen rows' sums lack
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
