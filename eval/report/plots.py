"""The report's plots of measures, as matplotlib figures.

arms of runs  ->  Figure
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from entroloop.eval.report import style
from entroloop.eval.report.arms import Arm, comparable
from entroloop.eval.report.runs import Run
from entroloop.eval.report.statistics import (
    baseline_value,
    correlation,
    curve,
    entropy_and_score,
    entropy_sizes,
    number,
    once,
)
from entroloop.eval.report.verdicts import marked

_BASELINE = "#555555"
_BARRED, _BANDED = 3, 5  # fewest seeds of an interval drawn as bars, as a band: wide bands would cover each other


def measure_curves(groups: Sequence[Arm], runs: Sequence[Run], encoder: str, measure: str) -> Figure | None:
    """Mean over equal seeds with its interval; thin lines for single runs; a dashed line for held-out against training
    data. None when nothing is measured."""
    with matplotlib.rc_context(style.STYLE):
        figure, axes, columns = style.curve_figure([*(arm.label for arm in groups), "real test vs real train"])
        looks = style.styles(groups)
        shown: list[float] = []
        for i, (arm, even) in enumerate(zip(groups, comparable(groups).groups, strict=True)):
            line = curve(even, encoder, measure)
            look = looks[arm.label]
            if not line.generations:
                continue
            if min(line.n) >= _BANDED:
                axes.fill_between(line.generations, line.low, line.high, color=look.colour, alpha=0.14, linewidth=0)
            elif min(line.n) >= _BARRED:
                aside = min(0.06, 0.6 / len(groups)) * (i - (len(groups) - 1) / 2)
                at = [g + aside for g in line.generations]
                axes.vlines(at, line.low, line.high, color=look.colour, linestyle=look.dash, linewidth=1.2, alpha=0.7)
            if len(arm.runs) > 1:
                shown += _seeds(axes, arm, encoder, measure, look.colour)
            shown += line.mean
            style.draw_curve(axes, look, arm.label, line.generations, line.mean)
        if not shown:
            return None
        base = baseline_value(runs, encoder, measure)
        if base is not None:
            axes.axhline(base, color=_BASELINE, linestyle=(0, (4, 3)), linewidth=1, label="real test vs real train")
            shown.append(base)
        _limits(axes, shown)
        style.finish_curves(figure, axes, columns, f"{marked(measure, encoder)} · {encoder}")
    return figure


def _seeds(axes: Axes, arm: Arm, encoder: str, measure: str, colour: str) -> list[float]:
    shown: list[float] = []
    for run in arm.runs:
        points = [(row.generation, row.value(encoder, measure)) for row in run.rows]
        known = [(g, value) for g, value in points if g is not None and value is not None]
        axes.plot([g for g, _ in known], [v for _, v in known], color=colour, linewidth=0.6, alpha=0.55)
        shown += [value for _, value in known]
    return shown


def _limits(axes: Axes, shown: Sequence[float]) -> None:
    """Fit the axis to the measured values; an interval of few seeds may extend beyond it."""
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - margin, high + margin)


def entropy_scatter(groups: Sequence[Arm], encoder: str) -> Figure | None:
    """Training-set entropy against log generalization score, one point per generation of each run, with Pearson r.

    None when nothing is measured or the entropies were estimated from different numbers of images.
    """
    if len(entropy_sizes([run for arm in groups for run in arm.runs])) > 1:
        return None
    with matplotlib.rc_context(style.STYLE):
        figure, axes, columns = style.curve_figure([arm.label for arm in groups], 4.6, 3.3)
        looks = style.styles(groups)
        clusters = [cluster for arm in groups for cluster in entropy_and_score(arm.runs, encoder)]
        if not any(clusters):
            return None
        for arm in groups:
            points = [pair for cluster in entropy_and_score(arm.runs, encoder) for pair in cluster]
            look = looks[arm.label]
            axes.scatter(
                [x for x, _ in points], [y for _, y in points], s=22, color=look.colour, marker=look.marker,
                alpha=0.85, linewidth=0, label=style.wrapped(arm.label, 4.6),
            )  # fmt: skip
        found = correlation(clusters)
        if found is not None:
            every = np.array([pair for cluster in once(clusters) for pair in cluster])  # the points that r counts
            slope, offset = np.polyfit(every[:, 0], every[:, 1], 1)
            ends = np.array([every[:, 0].min(), every[:, 0].max()])
            axes.plot(ends, slope * ends + offset, color=_BASELINE, linewidth=1, zorder=0)
        words = f"{_pearson_words(clusters)} · {encoder}"
        axes.set_title(words, fontsize=10 if len(words) < 50 else 8)
        axes.set_xlabel("training-set entropy (nats)")
        axes.set_ylabel("log generalization score")
        figure.legend(loc="lower center", ncols=columns)
    return figure


def _pearson_words(clusters: Sequence[Sequence[tuple[float, float]]]) -> str:
    found = correlation(clusters)
    if found is None:
        return "too few points for a correlation"
    span = f" [{number(found.low)}, {number(found.high)}]" if found.low is not None else ""
    return f"Pearson r = {number(found.r)}{span}, {found.n} points"


def provenance_areas(groups: Sequence[Arm]) -> Figure | None:
    """Stacked areas: shares of every training set by origin, the mean over equal seeds, one panel per arm.

    The areas are level for the width of each generation, since there is no training set between two generations.
    None when every training set has a single origin, because each area would be the whole panel.
    """
    filled = comparable(groups).measured
    if all(len(row.provenance) < 2 for arm in filled for run in arm.runs for row in run.rows):
        return None
    with matplotlib.rc_context(style.STYLE):
        figure, panels = style.new_figure(2.2 * min(len(filled), style.ACROSS) + 2, 2.7, len(filled), right=1.3)
        last = max(max(arm.generations) for arm in filled)
        origins = ["real", *map(str, range(last))]
        colours = ["#F0E442", *matplotlib.colormaps["cividis"](np.linspace(0.05, 0.75, last))]
        used = np.zeros(len(origins), bool)
        for axes, arm in zip(panels, filled, strict=True):
            shares = np.array([[_share(arm, g, origin) for g in arm.generations] for origin in origins])
            edges = np.add.outer(arm.generations, (-0.5, 0.5)).ravel()
            axes.stackplot(edges, shares.repeat(2, 1), colors=colours, linewidth=0)
            used |= shares.any(1)
            style.panel_title(axes, arm.label)
            axes.set_ylim(0, 1)
            axes.set_xlim(edges[0], edges[-1])
            axes.set_xlabel("generation")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[:: style.ACROSS]:
            axes.set_ylabel("share of the training set")
        keys = [
            Patch(color=colour, label=origin if origin == "real" else f"generation {origin}")
            for origin, colour, some in zip(origins, colours, used, strict=True) if some
        ]  # fmt: skip
        figure.legend(handles=keys[::-1], loc="center right")
    return figure


def _share(arm: Arm, generation: int, origin: str) -> float:
    shares = [
        float(row.provenance.get(origin, 0.0)) for run in arm.runs for row in run.rows
        if row.generation == generation
    ]  # fmt: skip
    return float(np.mean(shares))


def spectra(groups: Sequence[Arm], encoder: str) -> Figure | None:
    """Leading eigenvalues of the generated features' covariance: one panel per arm, with one line for each of at most
    five evenly spread generations."""
    groups = comparable(groups).measured
    lines = {arm.label: _eigenvalues(arm, encoder) for arm in groups}
    filled = [arm for arm in groups if lines[arm.label]]
    if not filled:
        return None
    with matplotlib.rc_context(style.STYLE):
        last = max(g for arm in filled for g in lines[arm.label])
        figure, panels, colours = style.by_generation(len(filled), last)
        positive = [v for arm in filled for values in lines[arm.label].values() for v in values if v > 0]
        for axes, arm in zip(panels, filled, strict=True):
            for generation, values in lines[arm.label].items():
                if generation in colours:
                    axes.plot(range(1, len(values) + 1), values, color=colours[generation], linewidth=1.3)
            style.panel_title(axes, arm.label)
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())  # half of the figure's size
            axes.set_ylim(max(min(positive), max(positive) * 1e-6) / 1.5, max(positive) * 1.5)
            axes.set_xlabel("eigenvalue number")
            if axes not in panels[:: style.ACROSS]:
                axes.tick_params(labelleft=False)
        for axes in panels[:: style.ACROSS]:
            axes.set_ylabel(f"eigenvalue · {encoder}")
    return figure


def _eigenvalues(arm: Arm, encoder: str) -> dict[int, list[float]]:
    """Generation -> the spectrum of the arm's first compared run."""
    rows = arm.runs[0].rows
    found = {row.generation: row.encoder(encoder).top_eigenvalues for row in rows if row.generation is not None}
    return {generation: values for generation, values in found.items() if values}
