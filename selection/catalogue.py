"""The strategies and distances that a configuration can name, with their facts."""

from __future__ import annotations

from dataclasses import dataclass

from entroloop.data.registry import Facts, Registry


@dataclass(frozen=True)
class StrategyFacts(Facts):
    """A function (problem: Problem, *, options) -> Selection. See `selection/rules/problem.py`.

    Its options are its keyword-only parameters, whose annotations give type and bounds.

    by_class  whether the choice depends on the labels of the candidates
    """

    by_class: bool = False


@dataclass(frozen=True)
class DistanceFacts(Facts):
    """A function (bank: Shard) -> map of rows. See `selection/exact/spaces.py`.

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
        "random": StrategyFacts(f"{_RULES}.random:random"),
        "random-class-balanced": StrategyFacts(f"{_RULES}.random:random_class_balanced", by_class=True),
        "greedy": StrategyFacts(f"{_RULES}.greedy:greedy_selection"),
        "threshold-decay": StrategyFacts(f"{_RULES}.threshold:threshold_selection"),
        "adaptive-threshold": StrategyFacts(f"{_RULES}.adaptive:adaptive_threshold"),
        "entropy-matching": StrategyFacts(f"{_RULES}.adaptive:entropy_matching"),
        "covariance-matching": StrategyFacts(f"{_RULES}.matching:covariance_matching"),
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
