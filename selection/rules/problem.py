"""The input of a strategy (`Problem`) and its result (`Selection`).

    Problem (this rank's rows, a size, a seed, ...)  ->  strategy  ->  Selection, the same on every rank

A strategy is a function `strategy(problem, *, option: Annotated[float, Field(ge=0)] = default, ...) -> Selection`.
`selection/options.py` checks options against these annotations; those of a built-in strategy are in `catalogue.py`.
Installed packages name their strategies in the entry-point group `entroloop.strategies`.

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
from entroloop.selection.exact.formats import shortest_format
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.exact.sketch import Frame, Sketch


@dataclass(frozen=True)
class Selection:
    """The chosen rows, as numpy arrays.

    ids    int64 [M], in the order chosen; with several ranks they count the rows in rank order
    radii  float64 [M]: distance of pick j to the nearest pick before it, inf for the first
    info   further results of the strategy: plain numbers and strings
    """

    ids: NDArray[np.int64]
    radii: NDArray[np.float64]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """The input of a strategy.

    candidates   this rank's rows [n_r, D], the metric already applied, and the numbering of all N rows
    size, seed   number of rows to choose; seed of all randomness
    labels       int64 [N] class of every row of all ranks, or None; `generations` likewise
    reference    a RankRows of real rows [., D] in the same space, or None
    on_progress  the strategy calls it with the number of rows newly chosen
    """

    candidates: RankRows
    size: int
    seed: int
    labels: Tensor | None = None
    generations: Tensor | None = None
    reference: RankRows | None = None
    on_progress: Callable[[int], None] = lambda new: None

    def generator(self, purpose: str) -> np.random.Generator:
        """A random generator that depends on the seed and the purpose alone, so it is the same on every rank."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def order(self) -> Tensor:
        """All ids in seeded random order, in which `random` takes rows and threshold filters visit rows. int64 [N]."""
        return torch.from_numpy(self.generator("order").permutation(self.candidates.total))

    def selection(self, ids: Tensor, radii: Tensor | None = None, **info: Any) -> Selection:
        """The Selection of these ids int64 [M]. Computes the radii if the strategy has none."""
        if radii is None:
            radii = order_radii(self.candidates, ids)
        return Selection(ids.cpu().numpy(), radii.cpu().numpy(), info)


def order_radii(own: RankRows, ids: Tensor) -> Tensor:
    """The distance of each of these rows to the nearest row before it. int64 [M] -> float64 [M], inf first."""
    rows = own.take(ids.to(own.rows.device))
    points = Sketch.of(rows, Frame.of(rows), shortest_format(rows))
    level = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    return earlier_distances(points, points.turn(), level)


def quotas(counts: Sequence[int], size: int) -> list[int]:
    """The share of `size` per group: as equal as possible, at most its count; earlier groups take a remainder."""
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
