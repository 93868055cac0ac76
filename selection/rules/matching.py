"""Covariance matching: rows whose mean and covariance are those of a reference (after arXiv 2510.08123).

    Problem (+ reference; else the candidates themselves) -> covariance_matching -> Selection

Rows are whitened by the reference and cut to its Q strongest directions, so that the target is mean 0 and covariance I.
Herding then keeps the sums of u and u u^T of the chosen rows close to their targets: out of a window of the seeded
order it takes the row that brings them nearest in the Frobenius norm. Every rank does the same on the gathered [N, Q]
array.

Shapes: N candidates, Q directions, W rows of the window, M chosen.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
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
    waiting = problem.order().numpy().copy()
    left, turn = len(waiting), 0  # waiting[:left] are not chosen yet; the window moves through them round and round
    q = u.shape[1]
    first, second = np.zeros(q), np.zeros((q, q))  # what the chosen rows' sums lack
    chosen = np.empty(problem.size, dtype=np.int64)
    for j in range(problem.size):
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
    gap = float(np.linalg.norm(second / problem.size) / np.sqrt(q))
    return problem.selection(torch.from_numpy(chosen), covariance_gap=gap)
