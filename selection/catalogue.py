"""The strategies and distances that a configuration can name, with their facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from entroloop.data.registry import Facts, Registry

ROW = "row"  # metadata of an option that is the id of a row, or -1 to leave the choice to the strategy


@dataclass(frozen=True)
class StrategyFacts(Facts):
    """A function (problem: Problem, *, options) -> Selection. See `selection/rules/problem.py`.

    Its options are its keyword-only parameters, whose annotations give type and bounds.

    by_class  whether the choice depends on the labels of the candidates
    options   of a built-in strategy: option -> annotation, here instead of in the function, so that torch is not needed
    spreads   whether the strategy prefers rows that are far from each other
    """

    by_class: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    spreads: bool = False


@dataclass(frozen=True)
class DistanceFacts(Facts):
    """A function (bank: RankRows) -> map of rows. See `selection/exact/spaces.py`.

    The distance of two rows is the Euclidean distance of the mapped rows.

    angular  whether the distance is reported as 1 - cos, half the squared distance of rows of length 1; zero rows are
             then refused
    """

    angular: bool = False


_RULES = "entroloop.selection.rules"
_DISTANCES = "entroloop.selection.exact.spaces"

STRATEGIES = Registry(
    "strategy",
    "strategies",
    StrategyFacts,
    {
        "random": StrategyFacts(f"{_RULES}.random:random", options={"stratified": bool}),
        "random-class-balanced": StrategyFacts(f"{_RULES}.random:random_class_balanced", by_class=True),
        "greedy": StrategyFacts(
            f"{_RULES}.greedy:greedy_selection",
            options={
                "start": Annotated[int, ROW],
                "parts": Annotated[int, Ge(0)],
                "oversample": Annotated[float, Ge(1)],
            },
            spreads=True,
        ),
        "threshold-decay": StrategyFacts(
            f"{_RULES}.threshold:threshold_selection",
            options={
                "threshold": Annotated[float, Ge(0)],
                "decay": Annotated[float, Gt(0), Lt(1)],
            },
            spreads=True,
        ),
        "adaptive-threshold": StrategyFacts(
            f"{_RULES}.adaptive:adaptive_threshold",
            options={"strength": Annotated[float, Ge(0), Le(1)]},
            spreads=True,
        ),
        "entropy-matching": StrategyFacts(f"{_RULES}.adaptive:entropy_matching"),
        "covariance-matching": StrategyFacts(
            f"{_RULES}.matching:covariance_matching",
            options={"directions": Annotated[int, Ge(1)], "window": Annotated[int, Ge(1)]},
        ),
        "herding": StrategyFacts(f"{_RULES}.herding:herding"),
        "voronoi": StrategyFacts(f"{_RULES}.voronoi:voronoi"),
    },
)

DISTANCES = Registry(
    "metric",
    "distances",
    DistanceFacts,
    {
        "euclidean": DistanceFacts(f"{_DISTANCES}:euclidean"),
        "cosine": DistanceFacts(f"{_DISTANCES}:cosine", angular=True),
        "whitened": DistanceFacts(f"{_DISTANCES}:whitened"),
    },
)
