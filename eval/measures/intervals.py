"""95% intervals of measures, from points that are drawn again.

    Sets, their values  ->  intervals  ->  measure: (low, high)

There are two kinds, because points drawn with replacement are duplicates, at distance 0 from their nearest neighbour:

- Measures of copying (GIVEN_TRAINING) are about the training set as it is. Their distances from each generated and each
  reference point to the training set are drawn with replacement, and the interval is the percentile interval (Efron
  1979). No distance between two drawn points is needed.
- All others are measured on random subsets of every set, drawn without replacement (Politis and Romano 1994). With a
  share s of the points, sqrt(s / (1 - s)) times the spread of the values v on subsets estimates the spread of the
  measure at the full size (the delete-d jackknife, Shao and Wu 1989). With halves the factor is 1, and the interval
  is the quantiles of value - (v - mean v). The mean of v is subtracted, not the value, because most of these measures
  depend on the number of points.

C_T has no interval: it is a z-score itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch

from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets

GIVEN_TRAINING = (
    "generalization_score", "generalization_score_ratio", "memorized_fraction", "memorized_calibrated", "authenticity",
)  # fmt: skip
PROPORTIONS = ("precision", "recall", "coverage")
WITHOUT = ("ct_score",)
LEAST = 40  # points of a set
LEVELS = (0.025, 0.975)

Range = tuple[float, float]


def intervals(
    sets: Sets, values: Mapping[str, float], times: int, seed: int, drawn: Callable[[], None] = lambda: None
) -> dict[str, Range]:
    """The 95% interval of each value that is defined, the same on every rank.

    values  the measures of `sets`, by name
    times   number of draws
    drawn   called after each draw
    """
    rng = np.random.default_rng([seed, *b"intervals"])
    copying = [name for name in values if name in GIVEN_TRAINING]
    others = [name for name in values if name not in (*GIVEN_TRAINING, *WITHOUT)]
    found: dict[str, list[float]] = {name: [] for name in (*copying, *others)}
    for _ in range(times):
        drawn_again = measure(redrawn(sets, rng), only=copying).values
        halves = measure(half(sets, rng, scaled=True), only=others).values
        for name, value in (drawn_again | halves).items():
            found[name].append(value)
        drawn()
    out = {}
    for name, several in found.items():
        v = np.array(several)
        if name in others:
            v = values[name] - (v - v.mean())
        low, high = np.quantile(v.clip(0, 1) if name in PROPORTIONS else v, LEVELS)
        out[name] = (float(low), float(high))
    return out


def redrawn(sets: Sets, rng: np.random.Generator) -> Sets:
    """The same sets, with the distances of generated and of reference points to the training set drawn again."""
    other = copy.copy(sets)

    def rows(n: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, n, n)).to(sets.world.device)

    mine = rows(sets.n["generated"])
    found: dict[str, object] = {
        "to_training": tuple(x[mine] for x in sets.to_training),
        "to_copies": sets.to_copies[mine],
    }
    if sets.reference is not None:
        theirs = rows(sets.n["reference"])
        found["reference_to_training"] = sets.reference_to_training[theirs]
        found["reference_to_copies"] = sets.reference_to_copies[theirs]
    other.__dict__.update(found)  # in place of what `other` would find
    return other


def half(sets: Sets, rng: np.random.Generator, *, scaled: bool = False) -> Sets:
    """Half of the points of each set, at least two, drawn without replacement.

    scaled  whether the entropy estimate uses half as many points, too
    """
    drawn = {}
    for name, x in (("generated", sets.generated), ("training", sets.training), ("reference", sets.reference)):
        if x is not None:
            ids = np.sort(rng.permutation(sets.n[name])[: max(sets.n[name] // 2, 2)])
            drawn[name] = sets.among(x, ids)
            if name == "training" and sets.mirrored is not None:
                drawn["mirrored"] = sets.among(sets.mirrored, ids)
    size = sets.entropy_size
    if scaled and size is not None:
        size = max(size // 2, 2)
    return Sets(**drawn, world=sets.world, entropy_size=size, seed=sets.seed)


def ranges(sets: Sets, times: int, seed: int) -> dict[str, Range]:
    """The 2.5 % and 97.5 % quantiles of each measure on halves of every set. They are no intervals at the full size."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(times):
        for name, value in measure(half(sets, rng)).values.items():
            found.setdefault(name, []).append(value)
    quantiles = {name: np.quantile(several, LEVELS).tolist() for name, several in found.items()}
    return {name: (low, high) for name, (low, high) in quantiles.items()}
