"""The registry of strategies and the one door to them, `select`.

    features (this rank's rows) + size + strategy + options  ->  Selection(ids, radii), the same on every rank

Shapes: n_r rows of this rank, N rows of all ranks, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, field_validator

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.selection.distance import as_rows, bad_row_error, check_metric, distances_to, first_bad_row, nearest_name
from entroloop.selection.exchange import Shard
from entroloop.selection.greedy import greedy
from entroloop.selection.threshold import threshold_decay

ENTRY_POINTS = "entroloop.strategies"


@dataclass(frozen=True)
class Selection:
    """ids int64 [size] in the order chosen; radii float64 [size]: distance of pick j to the picks before it (inf first)."""

    ids: NDArray[np.int64]
    radii: NDArray[np.float64]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What a strategy is given: `shard` holds this rank's rows (the metric applied) and numbers those of all ranks."""

    shard: Shard
    size: int
    seed: int
    labels: Any = None
    reference: Any = None

    def generator(self, purpose: str) -> np.random.Generator:
        """Randomness that depends on the seed and the purpose only: the same on every rank."""
        return np.random.default_rng([self.seed, *purpose.encode()])


Strategy = Callable[..., Selection]


def _radii(shard: Shard, ids: torch.Tensor) -> torch.Tensor:
    rows = shard.take(ids)
    bound = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    for j in range(len(rows) - 1):
        bound[j + 1 :] = torch.minimum(bound[j + 1 :], distances_to(rows[j + 1 :], rows[j]))
    return bound


def random(problem: Problem) -> Selection:
    ids = torch.from_numpy(problem.generator("random").permutation(problem.shard.total)[: problem.size])
    return Selection(ids.numpy(), _radii(problem.shard, ids).numpy())


def greedy_strategy(problem: Problem, *, start: int = -1) -> Selection:
    first = start if start >= 0 else int(problem.generator("greedy").integers(problem.shard.total))
    ids, radii = greedy(problem.shard, problem.size, first)
    return Selection(ids.numpy(), radii.numpy())


def threshold_strategy(problem: Problem, *, threshold: float = 0.0, decay: float = 0.95) -> Selection:
    order = torch.from_numpy(problem.generator("threshold-decay").permutation(problem.shard.total))
    if threshold <= 0:
        sample = problem.shard.take(order[:512])
        threshold = float(torch.cat([distances_to(sample, row) for row in sample]).quantile(0.95)) or 1.0
    ids, radii = threshold_decay(problem.shard, problem.size, order, threshold, decay)
    return Selection(ids.numpy(), radii.numpy())


_BUILT_IN: dict[str, Strategy] = {
    "random": random,
    "greedy": greedy_strategy,
    "threshold-decay": threshold_strategy,
    "adaptive-threshold": threshold_strategy,
}


def strategies() -> dict[str, Strategy]:
    """Every strategy by name: the built-in ones, then those of the entry-point group `entroloop.strategies`."""
    known = dict(_BUILT_IN)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name not in known:
            known[point.name] = point.load()
    return known


def find(name: str) -> Strategy:
    """Raises UserError with the nearest name where there is none."""
    known = strategies()
    if name not in known:
        raise nearest_name("strategy", name, known)
    return known[name]


class SelectionConfig(BaseModel, extra="forbid", frozen=True):
    """The section `selection` of a run's configuration."""

    strategy: str = "greedy"
    metric: str = "euclidean"
    encoder: str = "classifier"
    options: dict[str, float | int | str | bool] = {}

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, name: str) -> str:
        find(name)
        return name

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        check_metric(name)
        return name


def select(
    features: Any,
    size: int,
    strategy: str = "greedy",
    *,
    seed: int = 0,
    world: World | None = None,
    metric: str = "euclidean",
    labels: Any = None,
    reference: Any = None,
    **options: Any,
) -> Selection:
    """Chooses `size` of the rows of all ranks; every rank gets the same result."""
    function = find(strategy)
    check_metric(metric)
    known = [p for p, v in inspect.signature(function).parameters.items() if v.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise nearest_name(f"option of strategy {strategy}", name, known)
    rows = as_rows(features)
    shard = Shard.of(rows, world)
    bad = min((o + b for o, b in shard.world.gather_objects((shard.offset, first_bad_row(rows))) if b >= 0), default=-1)
    if bad >= 0:
        raise bad_row_error("features", bad)
    if not 1 <= size <= shard.total:
        raise UserError(f"size: must be between 1 and the {shard.total} rows there are, is {size}")
    if metric != "euclidean":
        raise UserError(f"metric: {metric!r} is not ready yet")
    return function(Problem(shard, size, seed, labels, reference), **options)
