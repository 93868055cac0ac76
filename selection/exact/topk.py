"""Lists of the k nearest rows, and their pure, associative merge by distance; ties go to the smaller id.

Shapes: n queries, k kept, m offered. Empty places hold distance inf and id -1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def empty(n: int, k: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Lists that hold nothing yet: float64 [n, k] of inf, int64 [n, k] of -1."""
    distances = torch.full((n, k), torch.inf, dtype=torch.float64, device=device)
    return distances, torch.full((n, k), -1, dtype=torch.int64, device=device)


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k smallest entries of two lists per query, ordered by (distance, id).

    a, b  (distances float64 [n, m], ids int64 [n, m]); m may differ, and rows need not be sorted
    ->    (float64 [n, min(k, m_a + m_b)], int64)
    Associative and commutative if no id is in both lists, so blocks can be merged in any order.
    """
    distances = torch.cat([a[0], b[0]], 1)
    ids = torch.cat([a[1], b[1]], 1)
    ids, by_id = torch.sort(ids, dim=1)  # the stable sort by distance then leaves ties in the order of ids
    distances = distances.gather(1, by_id)
    distances, by_distance = torch.sort(distances, dim=1, stable=True)
    return distances[:, :k].contiguous(), ids.gather(1, by_distance)[:, :k].contiguous()


def take_nearest(lists: tuple[Tensor, Tensor], row: Tensor, distance: Tensor, ids: Tensor) -> None:
    """Merges pairs, all [P], in any order, into lists with k = 1, in place."""
    best, own = lists[0].view(-1), lists[1].view(-1)
    before = best.clone()
    best.scatter_reduce_(0, row, distance, "amin")
    own.masked_fill_(best < before, torch.iinfo(own.dtype).max)
    equal = distance == best[row]
    own.scatter_reduce_(0, row[equal], ids[equal], "amin")


def from_pairs(row: Tensor, distance: Tensor, ids: Tensor, k: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The k smallest entries per row from a list of pairs, all [P], in any order.

    ->  the rows that have pairs, ascending, int64 [R]; and their lists, float64 [R, k] and int64 [R, k], in order
    """
    order = torch.argsort(ids, stable=True)
    order = order[torch.argsort(distance[order], stable=True)]
    order = order[torch.argsort(row[order], stable=True)]
    row, distance, ids = row[order], distance[order], ids[order]
    rows, place, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[place]
    kept = rank < k
    out = empty(len(rows), k, row.device)
    out[0][place[kept], rank[kept]] = distance[kept]
    out[1][place[kept], rank[kept]] = ids[kept]
    return rows, out
