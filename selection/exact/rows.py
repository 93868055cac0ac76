"""Rows spread over the ranks of a World, as one numbered collection.

    this rank's rows + World  ->  RankRows  ->  rows of any global id on every rank

Global ids count rows in rank order: rank r holds the ids offset … offset + n_r - 1. A rank may hold no rows.

Shapes: n_r rows of this rank, N rows of all ranks, D features, M ids asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from entroloop.data.world import World


@dataclass(frozen=True)
class RankRows:
    """This rank's part of a collection: `rows` [n_r, D]; `counts` holds the n_r of every rank."""

    rows: Tensor
    counts: tuple[int, ...]
    world: World

    @classmethod
    def of(cls, rows: Tensor, world: World | None = None) -> RankRows:
        """Numbers the rows of all ranks. Several ranks need one exchange."""
        world = World() if world is None else world
        return cls(rows, tuple(world.gather_counts(len(rows))), world)

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def offset(self) -> int:
        return sum(self.counts[: self.world.rank])

    def owned(self, ids: Tensor) -> tuple[Tensor | slice, Tensor]:
        """The global ids that this rank holds: their places in `ids`, and their local row numbers. int64 each."""
        if self.world.size == 1:
            return slice(None), ids
        mine = ((ids >= self.offset) & (ids < self.offset + len(self.rows))).nonzero()[:, 0]
        return mine, ids[mine] - self.offset

    def take(self, ids: Tensor, of: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
        """The rows with these global ids on every rank, in the order of `ids`. [M] -> [M, D]; one exchange.

        of  applied to the rows on the rank that holds them: [n, D] -> [n, ...]; its results are what is exchanged
        """
        if self.world.size == 1:
            return of(self.rows.index_select(0, ids))
        _, local = self.owned(ids)
        bounds = torch.tensor([0, *self.counts]).cumsum(0)
        owner = torch.bucketize(ids.cpu(), bounds[1:], right=True)
        per_rank = torch.bincount(owner, minlength=self.world.size).tolist()
        gathered = self.world.gather_rows(of(self.rows.index_select(0, local)), per_rank)
        out = torch.empty_like(gathered)
        out[torch.argsort(owner, stable=True).to(out.device)] = gathered
        return out

    def share(
        self, local: Tensor, value: Tensor, most: int, edge: tuple[float, float, float]
    ) -> tuple[Tensor, Tensor, Tensor, list[tuple[float, float, float]]]:
        """Every rank's proposals on every rank, in one exchange of a fixed shape.

        local  [P] int64: at most `most` rows of this rank        value  [P] float64: a number per row
        edge   three numbers of this rank
        ->     global ids int64, values float64, rows [., D], of all ranks in rank order; every rank's edge
        """
        width = self.rows.shape[1] * self.rows.element_size()
        numbers = torch.zeros((most + 1, 3), dtype=torch.float64, device=self.rows.device)
        packed = torch.zeros((most + 1, width + 24), dtype=torch.uint8, device=self.rows.device)
        count = len(local)
        numbers[:count, 0] = (local + self.offset).double()  # exact below 2^53
        numbers[:count, 1] = value
        numbers[count:, 0] = -1
        numbers[most] = numbers.new_tensor(edge)
        packed[:count, :width] = self.rows.index_select(0, local).view(torch.uint8).view(count, width)
        packed[:, width:] = numbers.view(torch.uint8).view(most + 1, 24)
        packed = self.world.gather_rows(packed, [most + 1] * self.world.size)
        numbers = packed[:, width:].contiguous().view(torch.float64)
        is_edge = torch.arange(len(packed), device=packed.device) % (most + 1) == most
        given = ((numbers[:, 0] >= 0) > is_edge).nonzero()[:, 0]
        rows = packed.index_select(0, given)[:, :width].contiguous().view(self.rows.dtype)
        edges = [(float(a), float(b), float(c)) for a, b, c in numbers[most :: most + 1].tolist()]
        return numbers[given, 0].long(), numbers[given, 1], rows, edges
