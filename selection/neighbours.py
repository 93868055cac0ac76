"""Exact nearest neighbours. (First form: every pair by the canonical distance.)

Shapes: n queries, m bank rows, D features, k neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.selection import topk
from entroloop.selection.distance import as_rows, check_finite, check_metric, distances_to


def nearest(
    queries: Any,
    bank: Any,
    k: int = 1,
    *,
    exclude_self: bool = False,
    metric: str = "euclidean",
    world: World | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The k nearest bank rows of each query: distances float64 [n, k], ids int64 [n, k]; ties to the smaller id."""
    check_metric(metric)
    world = World() if world is None else world
    q, b = as_rows(queries, "queries"), as_rows(bank, "bank")
    check_finite(q, "queries")
    check_finite(b, "bank")
    start = sum(world.gather_counts(len(q))[: world.rank])
    b = world.gather_rows(b)
    if metric != "euclidean":
        raise UserError(f"metric: {metric!r} is not ready yet")
    if len(b) == 0:
        raise UserError("bank: holds no rows")
    if q.shape[1] != b.shape[1]:
        raise UserError(f"queries have {q.shape[1]} features, the bank has {b.shape[1]}: they must be equal")
    if not 1 <= k <= len(b) - exclude_self:
        raise UserError(f"k: must be between 1 and {len(b) - exclude_self} for {len(b)} bank rows, is {k}")
    distances, ids = topk.empty(len(q), k)
    for row in range(len(q)):
        column = distances_to(b, q[row])
        if exclude_self:
            column[start + row] = torch.inf
        order = torch.sort(column, stable=True)
        distances[row], ids[row] = order.values[:k], order.indices[:k]
    return distances.numpy(), ids.numpy()
