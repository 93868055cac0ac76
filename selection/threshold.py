"""The threshold decay filter. (First form: one candidate a step.)"""

from __future__ import annotations

import torch
from torch import Tensor

from entroloop.selection.distance import distances_to
from entroloop.selection.exchange import Shard


def threshold_decay(shard: Shard, size: int, order: Tensor, threshold: float, decay: float) -> tuple[Tensor, Tensor]:
    """`size` global ids in the order accepted, and their distances to those accepted before (inf first).

    order  [N] every global id once: the order in which candidates are looked at
    """
    rows = shard.world.gather_rows(shard.rows, shard.counts)
    bound = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    accepted: list[int] = []
    radii: list[float] = []
    remaining = order.tolist()
    while len(accepted) < size:
        if accepted and float(bound[remaining].max()) == 0.0:  # duplicates of accepted ones only
            missing = size - len(accepted)
            accepted += remaining[:missing]
            radii += [0.0] * missing
            break
        kept = []
        for candidate in remaining:
            if len(accepted) < size and (not accepted or float(bound[candidate]) > threshold):
                accepted.append(candidate)
                radii.append(float(bound[candidate]))
                bound = torch.minimum(bound, distances_to(rows, rows[candidate]))
            else:
                kept.append(candidate)
        remaining = kept
        threshold *= decay
    return torch.tensor(accepted), torch.tensor(radii, dtype=torch.float64)
