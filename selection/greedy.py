"""Greedy selection: farthest-point sampling (Gonzalez 1985). (First form: one column a pick.)"""

from __future__ import annotations

import torch
from torch import Tensor

from entroloop.selection.distance import distances_to
from entroloop.selection.exchange import Shard


def greedy(shard: Shard, size: int, start: int) -> tuple[Tensor, Tensor]:
    """`size` global ids int64 in the order picked, and their distances float64 to the picks before (inf first)."""
    rows = shard.world.gather_rows(shard.rows, shard.counts)
    bound = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    chosen, radii = [], []
    pick = start
    for _ in range(size):
        chosen.append(pick)
        radii.append(float(bound[pick]))
        bound = torch.minimum(bound, distances_to(rows, rows[pick]))
        bound[chosen] = -1.0
        pick = int(bound.argmax())
    return torch.tensor(chosen), torch.tensor(radii, dtype=torch.float64)
