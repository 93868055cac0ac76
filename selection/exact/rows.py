"""Rows spread over the ranks of a World, as one numbered collection.

    this rank's rows + World  ->  RankRows  ->  rows of any global id on every rank

Global ids count rows in rank order: rank r holds the ids offset … offset + n_r - 1. A rank may hold no rows.

Shapes: n_r rows of this rank, N rows of all ranks, D features, M ids asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        self, local: Tensor, value: Tensor, counts: Sequence[int], edge: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor, list[tuple[float, float]]]:
        """Every rank's proposals on every rank, in one exchange.

        local   [P] int64: rows of this rank        value  [P] float64: a number per row
        counts  the P of every rank
        edge    two numbers of this rank
        ->      global ids int64, values float64, rows [., D], of all ranks in rank order; the edges of the ranks that
                propose
        """
        with_edge = value.new_tensor(edge).expand(len(local), 2)
        numbers = torch.cat([(local + self.offset).double()[:, None], value[:, None], with_edge], 1)  # exact below 2^53
        packed = self.world.gather_rows(pack(self.rows.index_select(0, local), numbers), counts)
        rows, numbers = unpack(packed, self.rows)
        first = [sum(counts[:rank]) for rank, count in enumerate(counts) if count]
        edges = [(a, b) for a, b in numbers[first, 2:].tolist()]
        return numbers[:, 0].long(), numbers[:, 1], rows, edges


def pack(rows: Tensor, numbers: Tensor) -> Tensor:
    """Rows [n, D] and float64 numbers [n, F] as bytes [n, .], for a single exchange. `unpack` is the inverse."""
    first, width = 8 * numbers.shape[1], rows.shape[1] * rows.element_size()
    packed = torch.empty((len(rows), first + width), dtype=torch.uint8, device=rows.device)
    packed[:, :first] = numbers.contiguous().view(torch.uint8)
    packed[:, first:] = rows.contiguous().view(torch.uint8)
    return packed


def unpack(packed: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the width and dtype of `like`, and the numbers packed with them."""
    first = packed.shape[1] - like.shape[1] * like.element_size()
    # `contiguous` would keep the stride of a single row, which its dtype need not divide
    numbers, rows = (part.clone(memory_format=torch.contiguous_format) for part in packed.tensor_split([first], dim=1))
    return rows.view(like.dtype), numbers.view(torch.float64)
