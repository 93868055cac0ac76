"""Plots of how runs were made: loss of training, radii of selection and time, all from the unsealed stats.jsonl.

lines of stats.jsonl of the arms' runs  ->  Figure
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from entroloop.eval.report import style
from entroloop.eval.report.arms import Arm, comparable
from entroloop.eval.report.runs import Run

POINTS = 100  # of one loss curve


def loss_curves(run: Run) -> dict[int, tuple[list[float], list[float]]]:
    """Generation -> thousands of images trained on, and mean loss there; at most POINTS of each.

    Where a resumed training repeated steps, its later lines count. A fork also has the curves of the run that it was
    forked from, if that run is still in its place.
    """
    found: dict[int, dict[float, float]] = {}
    for line in (*run.earlier, *run.stats):
        kimg, loss = line.get("kimg"), line.get("loss")
        if line["phase"] == "train" and kimg is not None and loss is not None and math.isfinite(loss):
            found.setdefault(int(line["generation"][-4:]), {})[kimg] = loss
    out = {}
    for generation, losses in found.items():
        pieces = np.array_split(np.array(sorted(losses.items())), min(POINTS, len(losses)))
        means = [piece.mean(0) for piece in pieces]
        out[generation] = ([float(kimg) for kimg, _ in means], [float(loss) for _, loss in means])
    return out


def losses(groups: Sequence[Arm]) -> Figure | None:
    """Loss against images trained on: one panel per arm, with a line for each of at most five spread generations."""
    curves = {arm.label: loss_curves(arm.runs[0]) for arm in comparable(groups).groups}
    filled = [arm.label for arm in groups if curves[arm.label]]
    if not filled:
        return None
    every = [loss for label in filled for _, values in curves[label].values() for loss in values]
    with matplotlib.rc_context(style.STYLE):
        figure, panels, colours = style.by_generation(len(filled), max(max(curves[label]) for label in filled))
        for axes, label in zip(panels, filled, strict=True):
            for generation, (kimg, values) in sorted(curves[label].items()):
                if generation in colours:
                    mark = "o" if len(values) == 1 else ""
                    axes.plot(kimg, values, color=colours[generation], linewidth=1.2, marker=mark, markersize=3)
            style.panel_title(axes, label)
            axes.set_ylim(0.95 * min(every), 1.05 * float(np.quantile(every, 0.98)))
            axes.set_xlabel("thousand images")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(style.plain))
        panels[0].set_ylabel("training loss")
    return figure


def radii(groups: Sequence[Arm]) -> Figure | None:
    """Median distance of a chosen candidate to the nearest one chosen before, by generation: the mean over runs."""
    lines = {arm.label: _radii(arm) for arm in comparable(groups).groups}
    if not any(lines.values()):
        return None
    with matplotlib.rc_context(style.STYLE):
        figure, axes, columns = style.curve_figure([label for label, line in lines.items() if line])
        for label, look in style.styles(groups).items():
            if line := lines[label]:
                style.draw_curve(axes, look, label, list(line), list(line.values()))
        style.finish_curves(figure, axes, columns, "Median radius of selection")
    return figure


def _radii(arm: Arm) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for run in arm.runs:
        for line in (*run.earlier, *run.stats):
            if (radius := line.get("radius_median")) is not None:
                found.setdefault(int(line["generation"][-4:]), []).append(radius)
    return {generation: float(np.mean(values)) for generation, values in sorted(found.items())}


def phases_of(runs: Sequence[Run]) -> list[str]:
    """Phases that took time, in their order."""
    found = dict.fromkeys(line["phase"] for run in runs for line in run.stats if line.get("seconds"))
    return sorted(found, key=lambda phase: phase != "prepare")


def costs(runs: Sequence[Run]) -> Figure | None:
    """Seconds by phase, stacked, one bar per run. None for a single run, whose bar would fill the plot."""
    phases = phases_of(runs)
    if not phases or len(runs) < 2:
        return None
    with matplotlib.rc_context(style.STYLE):
        names = 0.3 + 0.075 * max(len(run.name) for run in runs)
        figure, (axes,) = style.new_figure(6 + names, 1.2 + 0.24 * len(runs), left=names, bottom=0.75)
        left = np.zeros(len(runs))
        colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
        for i, phase in enumerate(phases):
            seconds = np.array([spent(run, phase, "seconds") for run in runs])
            axes.barh([run.name for run in runs], seconds, left=left, color=colours[i % len(colours)], label=phase)
            left += seconds
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds")
        figure.legend(loc="lower center", ncols=len(phases))
    return figure


def spent(run: Run, phase: str, what: str) -> float:
    """Seconds, or images through the network (`nfe`), of one phase over all generations."""
    return float(sum(line.get(what) or 0 for line in run.stats if line.get("phase") == phase))
