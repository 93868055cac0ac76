"""The tables of docs/results.md as Markdown: the last generation, every generation, and a correlation.

    [Arm]  ->  comparison | course | correlations

Intervals are 95% Student intervals of the mean over seeds. Differences and ratios are computed between runs of equal
seed and then averaged, so an effect of the seed on all arms cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from entroloop.eval.catalogue import title
from entroloop.eval.report import statistics
from entroloop.eval.report.arms import Arm
from entroloop.eval.report.statistics import mean_and_interval
from entroloop.eval.report.tables import baseline_sizes

Column = tuple[str, str]  # encoder ("" for a measure without one) and measure


def comparison(groups: Sequence[Arm], base: Arm, columns: Sequence[Column]) -> str:
    """The last generation: for each measure its mean, and the mean change against `base`, paired by seed.

    Changes are in percent of the base's mean over seeds. The last line is real test against real train.
    """
    last = last_common(groups)
    assert last is not None
    heads = ["arm", "seeds", "real images"]
    for encoder, measure in columns:
        heads += [_head(encoder, measure), f"against {base.label}"]
    lines = []
    for arm in groups:
        cells = [arm.label, str(len(arm.runs)), mean_and_interval(arm.values(last, "", "real_share"), "{:.0%}".format)]
        for encoder, measure in columns:
            cells.append(mean_and_interval(arm.values(last, encoder, measure)))
            cells.append("" if arm is base else _change(arm, base, last, encoder, measure))
        lines.append(cells)
    stick = measuring_stick(groups, columns)
    if stick is not None:
        name, values = stick
        lines.append([name, "", "", *(cell for value in values for cell in (value, ""))])
    return f"Generation {last}:\n\n{markdown(heads, lines)}"


def measuring_stick(groups: Sequence[Arm], columns: Sequence[Column]) -> tuple[str, list[str]] | None:
    """The last row of every table, real test against real train: its name, and its mean over seeds for each column.

    The name includes the numbers of images. None when no run has the row.
    """
    by_seed = {run.seed: run for arm in groups for run in arm.runs if run.baseline is not None}
    if not by_seed:
        return None
    values = []
    for encoder, measure in columns:
        found = [run.baseline.value(encoder, measure) for run in by_seed.values() if run.baseline is not None]
        values.append(mean_and_interval([value for value in found if value is not None]))
    sizes = baseline_sizes(list(by_seed.values()))
    return f"real test vs real train ({sizes})" if sizes else "real test vs real train", values


def _head(encoder: str, measure: str) -> str:
    return f"{title(measure, encoder)}, {encoder}" if encoder else title(measure, encoder)


def _change(arm: Arm, base: Arm, generation: int, encoder: str, measure: str) -> str:
    whole = statistics.mean_value(base, generation, encoder, measure)
    found = statistics.paired(arm, base, generation, encoder, measure)
    if not whole or not found:
        return statistics.number(None)
    return mean_and_interval([difference / abs(whole) for difference in found], "{:+.0%}".format)


def course(groups: Sequence[Arm], columns: Sequence[Column]) -> str:
    """Every generation, and the change from the first to the last, paired by seed; then real test against real train.

    Positive measures also have a rate: the slope of the logarithm, in percent per generation. Entropy has no such
    scale.
    """
    last = last_common(groups)
    assert last is not None
    heads = ["arm", "measure", *(f"{g}" for g in range(last + 1)), "first to last", "per generation"]
    lines = []
    for arm in groups:
        for encoder, measure in columns:
            series = [[run.value(g, encoder, measure) for g in range(last + 1)] for run in arm.runs]
            whole = [[v for v in values if v is not None] for values in series]
            whole = [values for values in whole if len(values) == last + 1]
            cells = [arm.label, _head(encoder, measure)]
            cells += [statistics.number(float(np.mean(column))) for column in zip(*whole, strict=True)]
            cells.append(mean_and_interval([values[-1] - values[0] for values in whole]))
            cells.append("" if measure == "training_entropy" else _rate(whole))
            lines.append(cells)
    stick = measuring_stick(groups, columns)
    if stick is not None:
        for (encoder, measure), value in zip(columns, stick[1], strict=True):
            lines.append([stick[0], _head(encoder, measure), value, *[""] * (last + 2)])
    return f"{len(groups[0].runs)} seeds:\n\n{markdown(heads, lines)}"


def rate(values: Sequence[float]) -> float:
    """Relative change per generation: exp of the least-squares slope of the logarithms, minus 1."""
    slope = np.polyfit(np.arange(len(values)), np.log(values), 1)[0]
    return math.expm1(float(slope))


def _rate(series: Sequence[Sequence[float]]) -> str:
    if not series or len(series[0]) < 2 or min(min(values) for values in series) <= 0:
        return ""
    return mean_and_interval([rate(values) for values in series], "{:+.1%}".format)


def correlations(groups: Sequence[Arm], encoders: Sequence[str]) -> str:
    """Pearson r of training-set entropy and log generalization score over all generations of all runs.

    Points that runs share (generation 0 of a seed) count once. One interval is from drawing whole runs, the other from
    drawing whole seeds, because runs of a seed share generation 0. Each needs at least four of them.
    """
    lines = []
    for encoder in encoders:
        for name, chosen in (("all", groups), *((arm.label, [arm]) for arm in groups)):
            runs = [run for arm in chosen for run in arm.runs]
            clusters = statistics.entropy_and_score(runs, encoder)
            seeds = sorted({run.seed for run in runs})
            by_seed = [
                [pair for run, cluster in zip(runs, clusters, strict=True) if run.seed == seed for pair in cluster]
                for seed in seeds
            ]
            found, wider = statistics.correlation(clusters), statistics.correlation(by_seed)
            if found is not None and wider is not None:
                cells = [statistics.number(found.r), _span(found), _span(wider), str(found.n), str(len(runs))]
                lines.append([name, encoder, *cells])
    heads = ["arms", "features", "r", "interval by runs", "by seeds", "points", "runs"]
    return markdown(heads, lines)


def _span(found: statistics.Correlation) -> str:
    if found.low is None or found.high is None:
        return statistics.number(None)
    return f"[{statistics.number(found.low)}, {statistics.number(found.high)}]"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def last_common(groups: Sequence[Arm]) -> int | None:
    """The last generation that every arm with rows has reached."""
    reached = [max(arm.generations) for arm in groups if arm.generations]
    return min(reached) if reached else None
