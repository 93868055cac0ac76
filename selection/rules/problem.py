"""What a strategy is given, and what it gives back.

    Problem (this rank's rows, a size, a seed, ...)  ->  strategy  ->  Selection, the same on every rank

A strategy is a function `strategy(problem, *, option: Annotated[float, Field(ge=0)] = default, ...) -> Selection`.
`select` checks options against these annotations. Third parties name theirs in the entry-point group
`entroloop.strategies`.

Shapes: n_r rows of this rank, N rows of all ranks, D features, M chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.selection.exact.blocks import earlier_distances
from entroloop.selection.exact.rows import Shard
from entroloop.selection.exact.sketch import Frame, Side, Sketch, shortest_format


@dataclass(frozen=True)
class Selection:
    """What was chosen, as numpy arrays.

    ids    int64 [M], in the order chosen; with several ranks they count the rows in rank order
    radii  float64 [M]: distance of pick j to the nearest pick before it, inf for the first
    info   what the strategy found out on the way: plain numbers and strings
    """

    ids: NDArray[np.int64]
    radii: NDArray[np.float64]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One question to a strategy.

    shard        this rank's rows [n_r, D], the metric already applied, and the numbering of all N rows
    size, seed   how many to choose; where randomness comes from
    labels       int64 [N] class of every row of all ranks, or None; `generations` likewise
    reference    a Shard of real rows [., D] in the same space, or None
    on_progress  to be told how many more rows are chosen
    """

    shard: Shard
    size: int
    seed: int
    labels: Tensor | None = None
    generations: Tensor | None = None
    reference: Shard | None = None
    on_progress: Callable[[int], None] = lambda new: None

    def generator(self, purpose: str) -> np.random.Generator:
        """Randomness that depends on the seed and the purpose alone: the same on every rank."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def order(self) -> Tensor:
        """All ids in the seeded random order in which `random` takes them and thresholds look at them. int64 [N]."""
        return torch.from_numpy(self.generator("order").permutation(self.shard.total))

    def selection(self, ids: Tensor, radii: Tensor | None = None, **info: Any) -> Selection:
        """Computes the radii where the strategy has none."""
        if radii is None:
            radii = order_radii(self.shard, ids)
        return Selection(ids.cpu().numpy(), radii.cpu().numpy(), info)


def order_radii(shard: Shard, ids: Tensor) -> Tensor:
    """The distance of each of these rows to the nearest one before it. int64 [M] -> float64 [M], inf first."""
    rows = shard.take(ids.to(shard.rows.device))
    frame = Frame.of(rows)
    side = Side(rows, Sketch.of(rows, frame, shortest_format(rows)))
    return earlier_distances(side, torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device), frame)


def quotas(counts: Sequence[int], size: int) -> list[int]:
    """As equal as possible a share of `size` for each group, none above its count; earlier groups take a remainder."""
    out = [0] * len(counts)
    left = size
    while left > 0:
        open_ = [g for g, count in enumerate(counts) if out[g] < count]
        share, extra = divmod(left, len(open_))
        for place, g in enumerate(open_):
            given = min(share + (place < extra), counts[g] - out[g])
            out[g] += given
            left -= given
    return out
