"""The report's plots, as matplotlib figures.

    arms of runs  ->  Figure  ->  SVG or PNG bytes

Colours tell strategies apart and stay the same in every plot (Okabe and Ito's palette, safe for colour-blind readers);
markers and line styles tell them apart in print.
"""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Affine2D

from entroloop.eval.report.arms import Arm, comparable
from entroloop.eval.report.runs import Run
from entroloop.eval.report.statistics import correlation, curve, entropy_and_score, entropy_sizes, number, once
from entroloop.eval.report.verdicts import marked

COLOURS = {
    "random": "#D55E00",
    "greedy": "#0072B2",
    "threshold-decay": "#009E73",
    "adaptive-threshold": "#CC79A7",
    "entropy-matching": "#E69F00",
}
_MORE = ("#56B4E9", "#332288", "#882255", "#999933", "#000000")
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_BASELINE = "#555555"
_ACROSS = 7  # panels side by side
_WIDE = 4.4  # inches of a plot of curves
_LETTER = 0.065  # inches per letter of a legend
_BARRED, _BANDED = 3, 5  # fewest seeds of an interval drawn as bars, as a band: wide bands would cover each other
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "entroloop",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # without it, matplotlib measures every tick label to place the title
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Style:
    """How an arm is drawn, in matplotlib's terms and as attributes of the page's own SVG."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]

    @property
    def dasharray(self) -> str:
        """`stroke-dasharray` of a line 2 px wide."""
        return "none" if isinstance(self.dash, str) else " ".join(f"{2 * length:g}" for length in self.dash[1])

    @property
    def outline(self) -> str:
        """The marker as the `d` of an SVG path, about 9 px wide around the origin."""
        shape = MarkerStyle(self.marker)
        path = shape.get_path().transformed(shape.get_transform() + Affine2D().scale(9, -9))
        letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
        return "".join(
            "Z" if code == Path.CLOSEPOLY else letters[code] + " ".join(f"{value:.2f}" for value in points)
            for points, code in path.iter_segments()
        )


def styles(groups: Sequence[Arm]) -> dict[str, Style]:
    """Label of an arm -> its Style: colour by strategy (by label if all arms have one strategy), dash by `rest`."""
    by_strategy = len({arm.strategy for arm in groups}) > 1
    kinds = list(dict.fromkeys(arm.strategy if by_strategy else arm.label for arm in groups))
    spare = itertools.cycle(_MORE if by_strategy or len(kinds) == 1 else [*COLOURS.values(), *_MORE])
    colours = {kind: COLOURS[kind] if kind in COLOURS else next(spare) for kind in kinds}
    rests = list(dict.fromkeys(arm.rest for arm in groups))
    return {
        arm.label: Style(
            colours[arm.strategy if by_strategy else arm.label],
            _MARKERS[i % len(_MARKERS)],
            _DASHES[rests.index(arm.rest) % len(_DASHES)] if by_strategy else "-",
        )
        for i, arm in enumerate(groups)
    }


def new_figure(
    width: float, height: float, panels: int = 1, *, left: float = 0.7, right: float = 0.15, bottom: float = 0.5
) -> tuple[Figure, list[Axes]]:
    """Panels in rows of `_ACROSS`, each row `height` inches high.

    Margins in inches, set by hand: matplotlib's own layout would draw every figure twice.
    """
    rows, columns = -(-panels // _ACROSS), min(panels, _ACROSS)
    inner, height = height - 0.35 - bottom, height * rows
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        margins = {
            "left": left / width,
            "right": 1 - right / width,
            "bottom": bottom / height,
            "top": 1 - 0.35 / height,
        }
        spaces = {"wspace": 0.22, "hspace": (0.35 + bottom) / inner}
        axes = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw={**margins, **spaces}).flat)
        for empty in axes[panels:]:
            empty.set_visible(False)
    return figure, axes[:panels]


def _legend_height(labels: Sequence[str], columns: int, width: float) -> float:
    """Height in inches of a legend below the plot."""
    lines = max(wrapped(label, width).count("\n") + 1 for label in [*labels, ""])
    return 0.1 + 0.17 * lines * -(-len(labels) // columns)


def wrapped(label: str, width: float = _WIDE) -> str:
    """The label in lines that fit a legend of this width in inches."""
    return textwrap.fill(label, int((width - 0.7) / _LETTER))


def _columns(labels: Sequence[str], width: float) -> int:
    """How many columns of a legend fit side by side into a width in inches: at most three."""
    entry = 0.5 + _LETTER * max(map(len, labels), default=0)
    return max(1, min(3, len(labels), int(width / entry)))


def plain(value: float, _: int) -> str:
    """Tick labels no wider than seven characters."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def curve_figure(labels: Sequence[str]) -> tuple[Figure, Axes, int]:
    """A figure for curves, with room for a legend of these labels, its axes, and the columns of the legend."""
    columns = _columns(labels, _WIDE)
    room = _legend_height(labels, columns, _WIDE)
    figure, (axes,) = new_figure(_WIDE, 2.8 + room, bottom=0.45 + room)
    return figure, axes, columns


def by_generation(panels: int, last: int) -> tuple[Figure, list[Axes], dict[int, Any]]:
    """Panels with a colour bar of the generations 0 … `last`, and the colours of at most five spread generations."""
    figure, axes = new_figure(2.2 * min(panels, _ACROSS) + 1.7, 2.8, panels, right=1)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, max(last, 1)), "viridis_r")
    shown = np.unique(np.linspace(0, last, 5).round().astype(int)).tolist()
    bar = figure.add_axes((1 - 0.85 / figure.get_figwidth(), 0.2, 0.12 / figure.get_figwidth(), 0.68))
    figure.colorbar(scale, cax=bar, label="generation", ticks=MaxNLocator(integer=True))
    return figure, axes, {generation: scale.cmap(generation / max(last, 1)) for generation in shown}


def svg(figure: Figure) -> bytes:
    """The figure as SVG. A third of matplotlib's text is left out: comments, line breaks, digits after two decimals."""
    text = _saved(figure, "svg", metadata={"Date": None}).decode()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)  # never in labels
    return re.sub(r">\s+<", "><", re.sub(r"[ \n]+", " ", text)).encode()


def png(figure: Figure, dpi: int = 200) -> bytes:
    return _saved(figure, "png", dpi=dpi)


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format=form, **options)
    return out.getvalue()


def measure_curves(groups: Sequence[Arm], runs: Sequence[Run], encoder: str, measure: str) -> Figure | None:
    """Mean over equal seeds with its interval; thin lines for single runs; a dashed line for held-out against training
    data. None when nothing is measured."""
    with matplotlib.rc_context(STYLE):
        figure, axes, columns = curve_figure([*(arm.label for arm in groups), "real test vs real train"])
        looks = styles(groups)
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
            axes.plot(
                line.generations, line.mean, color=look.colour, marker=look.marker, linestyle=look.dash,
                markersize=4.5, linewidth=1.8, label=wrapped(arm.label),
            )  # fmt: skip
        if not shown:
            return None
        base = baseline_value(runs, encoder, measure)
        if base is not None:
            axes.axhline(base, color=_BASELINE, linestyle=(0, (4, 3)), linewidth=1, label="real test vs real train")
            shown.append(base)
        _limits(axes, shown)
        axes.set_title(f"{marked(measure, encoder)} · {encoder}")
        axes.set_xlabel("generation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        figure.legend(loc="lower center", ncols=columns, handlelength=2.6)
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


def baseline_value(runs: Sequence[Run], encoder: str, measure: str) -> float | None:
    """The mean of the real-test-vs-real-train rows of all runs."""
    values = [run.baseline.value(encoder, measure) for run in runs if run.baseline]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def entropy_scatter(groups: Sequence[Arm], encoder: str) -> Figure | None:
    """Training-set entropy against log generalization score, one point per generation of each run, with Pearson r.

    None when nothing is measured or the entropies were estimated from different numbers of images.
    """
    if len(entropy_sizes([run for arm in groups for run in arm.runs])) > 1:
        return None
    with matplotlib.rc_context(STYLE):
        names = [arm.label for arm in groups]
        columns = _columns(names, 4.6)
        room = _legend_height(names, columns, 4.6)
        figure, (axes,) = new_figure(4.6, 3.3 + room, bottom=0.45 + room)
        looks = styles(groups)
        clusters = [cluster for arm in groups for cluster in entropy_and_score(arm.runs, encoder)]
        if not any(clusters):
            return None
        for arm in groups:
            points = [pair for cluster in entropy_and_score(arm.runs, encoder) for pair in cluster]
            look = looks[arm.label]
            axes.scatter(
                [x for x, _ in points], [y for _, y in points], s=22, color=look.colour, marker=look.marker,
                alpha=0.85, linewidth=0, label=wrapped(arm.label, 4.6),
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
    with matplotlib.rc_context(STYLE):
        figure, panels = new_figure(2.2 * min(len(filled), _ACROSS) + 2, 2.7, len(filled), right=1.3)
        last = max(max(arm.generations) for arm in filled)
        origins = ["real", *map(str, range(last))]
        colours = ["#F0E442", *matplotlib.colormaps["cividis"](np.linspace(0.05, 0.75, last))]
        used = np.zeros(len(origins), bool)
        for axes, arm in zip(panels, filled, strict=True):
            shares = np.array([[_share(arm, g, origin) for g in arm.generations] for origin in origins])
            edges = np.add.outer(arm.generations, (-0.5, 0.5)).ravel()
            axes.stackplot(edges, shares.repeat(2, 1), colors=colours, linewidth=0)
            used |= shares.any(1)
            panel_title(axes, arm.label)
            axes.set_ylim(0, 1)
            axes.set_xlim(edges[0], edges[-1])
            axes.set_xlabel("generation")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[::_ACROSS]:
            axes.set_ylabel("share of the training set")
        keys = [
            Patch(color=colour, label=origin if origin == "real" else f"generation {origin}")
            for origin, colour, some in zip(origins, colours, used, strict=True) if some
        ]  # fmt: skip
        figure.legend(handles=keys[::-1], loc="center right")
    return figure


def panel_title(axes: Axes, label: str) -> None:
    """A title small enough for a panel of two inches."""
    lines = textwrap.wrap(label, 30)
    axes.set_title("\n".join(lines[:2]) + (" …" if len(lines) > 2 else ""), fontsize=8 if len(label) > 20 else 9)


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
    with matplotlib.rc_context(STYLE):
        last = max(g for arm in filled for g in lines[arm.label])
        figure, panels, colours = by_generation(len(filled), last)
        positive = [v for arm in filled for values in lines[arm.label].values() for v in values if v > 0]
        for axes, arm in zip(panels, filled, strict=True):
            for generation, values in lines[arm.label].items():
                if generation in colours:
                    axes.plot(range(1, len(values) + 1), values, color=colours[generation], linewidth=1.3)
            panel_title(axes, arm.label)
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())  # half of the figure's size
            axes.set_ylim(max(min(positive), max(positive) * 1e-6) / 1.5, max(positive) * 1.5)
            axes.set_xlabel("eigenvalue number")
            if axes not in panels[::_ACROSS]:
                axes.tick_params(labelleft=False)
        for axes in panels[::_ACROSS]:
            axes.set_ylabel(f"eigenvalue · {encoder}")
    return figure


def _eigenvalues(arm: Arm, encoder: str) -> dict[int, list[float]]:
    """Generation -> the spectrum of the arm's first compared run."""
    rows = arm.runs[0].rows
    found = {row.generation: row.encoder(encoder).top_eigenvalues for row in rows if row.generation is not None}
    return {generation: values for generation, values in found.items() if values}
