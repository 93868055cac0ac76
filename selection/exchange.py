"""Rows spread over the ranks of a World, as one numbered collection.

    this rank's rows + World  ->  Shard  ->  rows of any global id on every rank

Global ids count rows in rank order: rank r holds the ids offset .. offset + n_r - 1. Ranks may hold nothing.

Shapes: n_r rows of this rank, N rows of all ranks, D features, M ids asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from entroloop.data.world import World


@dataclass(frozen=True)
class Shard:
    """This rank's part of a collection: `rows` [n_r, D]; `counts` holds the n_r of every rank."""

    rows: Tensor
    counts: tuple[int, ...]
    world: World

    @classmethod
    def of(cls, rows: Tensor, world: World | None = None) -> Shard:
        """Numbers the rows of all ranks (one exchange where there are several)."""
        world = World() if world is None else world
        return cls(rows, tuple(world.gather_counts(len(rows))), world)

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def offset(self) -> int:
        return sum(self.counts[: self.world.rank])

    def owned(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Which of these global ids this rank holds: places in `ids`, and the local row numbers. int64 each."""
        mine = ((ids >= self.offset) & (ids < self.offset + len(self.rows))).nonzero()[:, 0]
        return mine, ids[mine] - self.offset

    def take(self, ids: Tensor) -> Tensor:
        """The rows with these global ids on every rank, in the order of `ids`. [M] -> [M, D]; one exchange."""
        if self.world.size == 1:
            return self.rows.index_select(0, ids)
        place, local = self.owned(ids)
        bounds = torch.tensor([0, *self.counts]).cumsum(0)
        owner = torch.bucketize(ids.cpu(), bounds[1:], right=True)
        per_rank = torch.bincount(owner, minlength=self.world.size).tolist()
        gathered = self.world.gather_rows(self.rows.index_select(0, local), per_rank)
        out = torch.empty_like(gathered)
        out[torch.argsort(owner, stable=True).to(out.device)] = gathered
        return out
