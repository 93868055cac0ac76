"""Exchanges between ranks that measures need: rows in turn, sums, neighbours and moments of the points of all ranks.

    this rank's rows  ->  Exchanges  ->  vectors with one number per point of all ranks, and sums, the same everywhere

Ranks pass their rows round a ring in blocks, and gather only vectors with one number per point.

D features, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.world import World
from entroloop.eval.measures import diversity, frechet, manifold
from entroloop.selection import nearest

RING_BYTES = 1 << 28  # of rows that travel between ranks at a time


class Exchanges:
    """The exchanges of one World. Every rank must ask for the same ones in the same order."""

    def __init__(self, world: World) -> None:
        self.world = world

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' rows, in rank order."""
        return self.world.gather_rows(x.to(self.world.device))

    def ring(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """All ranks' rows of `x` in blocks, each with the number of its first row. One rank keeps them in one block."""
        world, counts = self.world, self.world.gather_counts(len(x))
        starts = [sum(counts[:rank]) for rank in range(world.size)]
        step = max(counts) if world.size == 1 else max(1, RING_BYTES // (x.element_size() * x.shape[1]))
        for first in range(0, max(counts), max(step, 1)):
            block = x[first : first + step]
            yield starts[world.rank] + first, block
            for hop in range(1, world.size):
                source = (world.rank - hop) % world.size
                block = world.rotate(block, min(max(counts[source] - first, 0), step))
                yield starts[source] + first, block

    def total(self, *values: float) -> list[float]:
        """Sums over ranks."""
        out = self.world.all_reduce(torch.tensor(values, dtype=torch.float64, device=self.world.device))
        return [float(value) for value in out]

    def nearest(self, queries: Tensor, bank: Tensor, k: int, *, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
        """Distances float64 [all queries, k] and global ids."""
        distances, ids = nearest(queries, bank, k, exclude_self=exclude_self, world=self.world)
        return self.gather(torch.as_tensor(distances)), self.gather(torch.as_tensor(ids))

    def kernel_sum(self, x: Tensor, y: Tensor) -> float:
        """Sum of KID's kernel over all pairs of one of this rank's points `x` and one of all ranks' points `y`."""
        return math.fsum(diversity.polynomial_kernel_sum(x, block) for _, block in self.ring(y))

    def balls(self, points: Tensor, centres: Tensor, balls: Sequence[manifold.Balls]) -> list[tuple[Tensor, Tensor]]:
        """For each kind of balls, the number of balls around each of all ranks' points, int64 [all points], and of
        points inside each of all ranks' balls, int64 [all centres].

        `points` and `centres` are this rank's rows, the radii are those of all ranks' centres.
        """
        world, counts = self.world, self.world.gather_counts(len(centres))
        around = [torch.zeros(len(points), dtype=torch.int64, device=points.device) for _ in balls]
        inside = [torch.zeros(sum(counts), dtype=torch.int64, device=points.device) for _ in balls]
        for first, theirs in self.ring(centres):
            rows = slice(first, first + len(theirs))
            found = manifold.balls_around(points, theirs, [(radii[rows], closed) for radii, closed in balls])
            for i, (of_points, of_balls) in enumerate(found):
                around[i] += of_points
                inside[i][rows] = of_balls
        return [(self.gather(a), world.all_reduce(b)) for a, b in zip(around, inside, strict=True)]

    def own(self, values: Tensor, rows: Tensor) -> Tensor:
        """Of values of all ranks' rows, those of this rank's `rows`."""
        start = self._start(rows)
        return values[start : start + len(rows)]

    def first(self, x: Tensor, n: int) -> Tensor:
        """This rank's rows of the first n of all ranks' rows."""
        return x[: max(0, n - self._start(x))]

    def among(self, x: Tensor, ids: NDArray[np.int64]) -> Tensor:
        """This rank's rows of `x` whose numbers, counted through the rows of all ranks, are among the sorted ids."""
        start = self._start(x)
        mine = ids[(ids >= start) & (ids < start + len(x))] - start
        return x[torch.from_numpy(mine).to(x.device)]

    def combined(self, own: frechet.Moments) -> frechet.Moments:
        """Moments of all ranks' points from each rank's own."""
        world = self.world
        if world.size == 1:
            return own
        n = sum(world.gather_counts(own.n))
        mean = world.all_reduce(own.mean * own.n) / n
        shift = own.mean - mean
        return frechet.Moments(n, mean, world.all_reduce(own.scatter + own.n * torch.outer(shift, shift)))

    def _start(self, x: Tensor) -> int:
        """The number of rows on the ranks before this one."""
        return sum(self.world.gather_counts(len(x))[: self.world.rank])
