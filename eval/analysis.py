"""Statistics that the report states: spread over seeds, correlation with its interval, and sentences made of them.

    Arms  ->  curves, correlation, headline

Everything here is computed from the rows; no sentence has a result written into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from entroloop.eval.runs import Arm, Run, row_value

SAME = 0.02  # relative changes below this are called "about the same"
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
    """Band: 95% Student interval of the mean from three seeds on, the range below that."""
    points = [(g, arm.values(g, encoder, measure)) for g in arm.generations]
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
    """95% Student interval of the mean; of fewer than three values, their range."""
    if len(values) < 3:
        return min(values), max(values)
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
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
    """(training-set entropy, log generalization score) of every generation, one list a run."""
    out = []
    for run in runs:
        pairs = []
        for row in run.rows:
            entropy, score = (row_value(row, encoder, m) for m in ("training_entropy", "generalization_score"))
            if entropy is not None and score is not None and score > 0:
                pairs.append((entropy, math.log(score)))
        out.append(pairs)
    return out


def correlation(clusters: Sequence[Sequence[tuple[float, float]]]) -> Correlation | None:
    """Pearson r of all pairs; its interval by drawing whole runs with replacement (points of a run hang together).

    A point that runs share (generation 0 of a seed) counts once. None with fewer than three pairs or without spread.
    Below four runs no interval is given.
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
    """The clusters without the points that an earlier one has too."""
    seen: set[tuple[float, float]] = set()
    out = []
    for cluster in clusters:
        new = [pair for pair in cluster if pair not in seen]
        seen.update(new)
        out.append(new)
    return out


def _pearson(clusters: Sequence[np.ndarray]) -> float | None:
    points = np.concatenate(clusters) if clusters else np.empty((0, 2))
    if len(points) < 3 or min(points.std(0)) < 1e-12:
        return None
    return float(np.corrcoef(points.T)[0, 1])


def paired(ours: Arm, theirs: Arm, generation: int, encoder: str, measure: str) -> list[float]:
    """Differences ours - theirs of runs with equal seeds; they share generation 0, so the seed's luck cancels."""
    other = {run.seed: run.value(generation, encoder, measure) for run in theirs.runs}
    out = []
    for run in ours.runs:
        a, b = run.value(generation, encoder, measure), other.get(run.seed)
        if a is not None and b is not None:
            out.append(a - b)
    return out


def last_common(groups: Sequence[Arm]) -> int | None:
    """The last generation that every arm with any row has reached."""
    reached = [max(arm.generations) for arm in groups if arm.generations]
    return min(reached) if reached else None


def number(value: float | None) -> str:
    """Three significant digits; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "\N{MINUS SIGN}")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "\N{MINUS SIGN}")
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def mean_value(arm: Arm, generation: int, encoder: str, measure: str) -> float | None:
    values = arm.values(generation, encoder, measure)
    return float(np.mean(values)) if values else None


def change(before: float, after: float) -> str:
    """How a measure went from one value to another, in words."""
    span = f"({number(before)} → {number(after)})"
    if abs(after - before) <= SAME * abs(before):
        return f"stays about the same {span}"
    if before <= 0 or after <= 0:
        return f"{'rises' if after > before else 'falls'} {span}"
    if after >= 2 * before:
        return f"grows {number(after / before)}-fold {span}"
    return f"{'rises' if after > before else 'falls'} by {abs(after / before - 1):.0%} {span}"


def headline(groups: Sequence[Arm], score_encoder: str, distance_encoder: str) -> list[str]:
    """What the data show, in a sentence or two: how the first arm drifts, and how the others compare at the end."""
    last = last_common(groups)
    measured = [arm for arm in groups if arm.generations]
    if last is None:
        return ["No generation has been measured yet."]
    if last == 0:
        return ["Only generation 0, trained on real images, has been measured so far: nothing to compare yet."]
    out = [_drift(measured[0], last, score_encoder, distance_encoder)]
    if len(measured) > 1:
        out.append(_comparison(measured, last, score_encoder, distance_encoder))
    return out


def certainty(groups: Sequence[Arm], score_encoder: str, distance_encoder: str) -> list[str]:
    """How sure the headline is: seeds, encoders, and intervals of differences paired by seed."""
    last = last_common(groups)
    measured = [arm for arm in groups if arm.generations]
    if not last:
        return []
    seeds = [len({run.seed for run in arm.runs}) for arm in measured]
    many = f"means over {min(seeds)} seeds{' or more' if max(seeds) > min(seeds) else ''}"
    out = [
        f"Fréchet distance in {distance_encoder} features, generalization score in {score_encoder} features; "
        f"{'one seed: a direction, not a size' if min(seeds) == 1 else many}."
    ]
    phrases = []
    for arm in measured[1:]:
        differences = paired(arm, measured[0], last, distance_encoder, "frechet_distance")
        if len(differences) >= 3:
            low, high = (number(value) for value in interval(differences))
            phrases.append(f"{arm.label} {number(float(np.mean(differences)))} [{low}, {high}]")
    if phrases:
        out.append(
            f"Fréchet distance at generation {last} against {measured[0].label}, paired by seed, "
            f"mean difference and 95% interval: {'; '.join(phrases)}."
        )
    return out


def _drift(arm: Arm, last: int, score_encoder: str, distance_encoder: str) -> str:
    words = []
    for measure, encoder in (("frechet_distance", distance_encoder), ("generalization_score", score_encoder)):
        first, now = (mean_value(arm, g, encoder, measure) for g in (0, last))
        if first is not None and now is not None:
            what = "Fréchet distance to held-out images" if measure == "frechet_distance" else "generalization score"
            words.append(f"the {what} {change(first, now)}")
    where = f" under {arm.runs[0].paradigm}" if arm.runs[0].paradigm else ""
    span = f"Over {last} generation{'s' if last > 1 else ''} of training on generated images"
    return f"{span}{where} with {arm.label} selection, {' and '.join(words) or 'nothing was measured'}."


def _comparison(groups: Sequence[Arm], last: int, score_encoder: str, distance_encoder: str) -> str:
    """The other arms against the first one, at the last common generation."""
    distances = {arm.label: mean_value(arm, last, distance_encoder, "frechet_distance") for arm in groups}
    scores = {arm.label: mean_value(arm, last, score_encoder, "generalization_score") for arm in groups}
    first = groups[0].label
    base = distances[first]
    phrases = []
    for arm in groups[1:]:
        value = distances[arm.label]
        if value is not None and base:
            relative = f"{value / base - 1:+.0%}".replace("-", "\N{MINUS SIGN}")
            phrases.append(f"{number(value)} ({relative}) with {arm.label}")
    score = [f"{number(value)} ({label})" for label, value in scores.items() if value is not None]
    return (
        f"At generation {last} the Fréchet distance is {number(base)} with {first}, against {_listed(phrases)}; "
        f"the generalization score is {_listed(score)}."
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "unknown"
