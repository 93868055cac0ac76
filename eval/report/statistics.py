"""Statistics of the report: spread over seeds, paired differences, and correlation with its interval.

Arms  ->  curve | paired | correlation
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes 0.4 s to import

from entroloop.eval.report.arms import Arm
from entroloop.eval.report.runs import Run

DRAWS = 2000


@dataclass(frozen=True)
class Curve:
    """A measure over generations: the mean over seeds and its band; `n` seeds at each point."""

    generations: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    n: list[int]


def curve(arm: Arm, encoder: str, measure: str) -> Curve:
    """The band is the 95% Student interval of the mean for three or more seeds, else their range.

    The curve has the generations that all of the arm's runs have reached, so every mean is over the same seeds.
    """
    shared = set.intersection(*(set(run.measured) for run in arm.runs)) if arm.runs else set()
    points = [(g, arm.values(g, encoder, measure)) for g in sorted(shared)]
    points = [(g, values) for g, values in points if values]
    bands = [interval(values) for _, values in points]
    return Curve(
        [g for g, _ in points],
        [float(np.mean(values)) for _, values in points],
        [low for low, _ in bands],
        [high for _, high in bands],
        [len(values) for _, values in points],
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% Student interval of the mean; the range for fewer than three values."""
    if len(values) < 3:
        return min(values), max(values)
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.975)) * error
    return mean - half, mean + half


@dataclass(frozen=True)
class Correlation:
    """Pearson r over `n` generations of `runs` runs, with a 95% interval (None where too few runs allow one)."""

    r: float
    low: float | None
    high: float | None
    n: int
    runs: int


def entropy_and_score(runs: Sequence[Run], encoder: str) -> list[list[tuple[float, float]]]:
    """(training-set entropy, log generalization score) of every generation, one list per run."""
    out = []
    for run in runs:
        pairs = []
        for row in run.rows:
            entropy, score = (row.value(encoder, m) for m in ("training_entropy", "generalization_score"))
            if entropy is not None and score is not None and score > 0:
                pairs.append((entropy, math.log(score)))
        out.append(pairs)
    return out


def entropy_sizes(runs: Sequence[Run]) -> dict[int | None, str]:
    """Number of images in the entropy estimate -> name of a run that has it.

    Estimates from different numbers of images are not comparable.
    """
    found: dict[int | None, str] = {}
    for run in runs:
        for row in run.rows:
            for one in row.context.encoders.values():
                found.setdefault(one.entropy_n, run.name)
    return found


def correlation(clusters: Sequence[Sequence[tuple[float, float]]]) -> Correlation | None:
    """Pearson r of all pairs, with an interval from drawing whole runs with replacement.

    Whole runs are drawn because the points of a run depend on each other. A point that runs share (generation 0 of a
    seed) counts once. None with fewer than three pairs or without spread. With fewer than four runs, no interval.
    """
    filled = [np.array(cluster) for cluster in once(clusters) if len(cluster)]
    r = _pearson(filled)
    if r is None:
        return None
    low = high = None
    if len(filled) >= 4:
        rng = np.random.default_rng(0)
        draws = (_pearson([filled[i] for i in rng.integers(len(filled), size=len(filled))]) for _ in range(DRAWS))
        low, high = (float(q) for q in np.quantile([d for d in draws if d is not None], [0.025, 0.975]))
    return Correlation(r, low, high, sum(map(len, filled)), len(filled))


def once(clusters: Sequence[Sequence[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
    """The clusters, each point kept only where it first occurs over all clusters."""
    seen: set[tuple[float, float]] = set()
    out = []
    for cluster in clusters:
        new = [pair for pair in dict.fromkeys(cluster) if pair not in seen]
        seen.update(new)
        out.append(new)
    return out


def _pearson(clusters: Sequence[np.ndarray]) -> float | None:
    points = np.concatenate(clusters) if clusters else np.empty((0, 2))
    if len(points) < 3 or min(points.std(0)) < 1e-12:
        return None
    return float(np.corrcoef(points.T)[0, 1])


def paired(ours: Arm, theirs: Arm, generation: int, encoder: str, measure: str) -> list[float]:
    """Differences ours - theirs between runs of equal seed. They share generation 0, so the seed's effect cancels."""
    a, b = (arm.by_seed(generation, encoder, measure) for arm in (ours, theirs))
    return [a[seed] - b[seed] for seed in a if seed in b]


def number(value: float | None, significant: int = 3) -> str:
    """The value to `significant` digits; a dash for None and for a value that is not finite."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{significant - 1}e}".replace("-", "\N{MINUS SIGN}")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "\N{MINUS SIGN}")
    digits = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def mean_and_interval(values: Sequence[float], form: Callable[[float], str] = number) -> str:
    """`mean [low, high]`; the mean alone for fewer than three values, a dash for none."""
    if not values:
        return number(None)
    text = form(float(np.mean(values)))
    if len(values) >= 3:
        low, high = interval(values)
        text += f" [{form(low)}, {form(high)}]"
    return text.replace("-", "\N{MINUS SIGN}")


def mean_value(arm: Arm, generation: int, encoder: str, measure: str) -> float | None:
    values = arm.values(generation, encoder, measure)
    return float(np.mean(values)) if values else None


def baseline_value(runs: Sequence[Run], encoder: str, measure: str) -> float | None:
    """The mean of the real-test-vs-real-train rows of all runs."""
    values = [run.baseline.value(encoder, measure) for run in runs if run.baseline]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
