"""How the report's figures look: colours, sizes, panels and legends, and a figure as SVG or PNG.

    arms  ->  styles             sizes in inches  ->  Figure and its panels             Figure  ->  svg, png

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
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Affine2D

from entroloop.eval.report.arms import Arm

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
ACROSS = 7  # panels side by side
_WIDE = 4.4  # inches of a plot of curves
_LETTER = 0.065  # inches per letter of a legend
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
    """Panels in rows of `ACROSS`, each row `height` inches high.

    Margins in inches, set by hand: matplotlib's own layout would draw every figure twice.
    """
    rows, columns = -(-panels // ACROSS), min(panels, ACROSS)
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


def legend_height(labels: Sequence[str], columns: int, width: float) -> float:
    """Height in inches of a legend below the plot."""
    lines = max(wrapped(label, width).count("\n") + 1 for label in [*labels, ""])
    return 0.1 + 0.17 * lines * -(-len(labels) // columns)


def wrapped(label: str, width: float = _WIDE) -> str:
    """The label in lines that fit a legend of this width in inches."""
    return textwrap.fill(label, int((width - 0.7) / _LETTER))


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many columns of a legend fit side by side into a width in inches: at most three."""
    entry = 0.5 + _LETTER * max(map(len, labels), default=0)
    return max(1, min(3, len(labels), int(width / entry)))


def plain(value: float, _: int) -> str:
    """Tick labels no wider than seven characters."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def curve_figure(labels: Sequence[str], width: float = _WIDE, height: float = 2.8) -> tuple[Figure, Axes, int]:
    """A figure with room for a legend of these labels below its `height`, its axes, and the columns of the legend."""
    columns = legend_columns(labels, width)
    room = legend_height(labels, columns, width)
    figure, (axes,) = new_figure(width, height + room, bottom=0.45 + room)
    return figure, axes, columns


def draw_curve(axes: Axes, look: Style, label: str, at: Sequence[float], values: Sequence[float]) -> None:
    """The line of an arm, with its marks."""
    axes.plot(
        at, values, color=look.colour, marker=look.marker, linestyle=look.dash, markersize=4.5, linewidth=1.8,
        label=wrapped(label),
    )  # fmt: skip


def finish_curves(figure: Figure, axes: Axes, columns: int, title: str) -> None:
    """The title, the axis of generations and the legend of a `curve_figure` whose curves are drawn."""
    axes.set_title(title)
    axes.set_xlabel("generation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    figure.legend(loc="lower center", ncols=columns, handlelength=2.6)


def by_generation(panels: int, last: int) -> tuple[Figure, list[Axes], dict[int, Any]]:
    """Panels with a colour bar of the generations 0 … `last`, and the colours of at most five spread generations."""
    figure, axes = new_figure(2.2 * min(panels, ACROSS) + 1.7, 2.8, panels, right=1)
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


def panel_title(axes: Axes, label: str) -> None:
    """A title small enough for a panel of two inches."""
    lines = textwrap.wrap(label, 30)
    axes.set_title("\n".join(lines[:2]) + (" …" if len(lines) > 2 else ""), fontsize=8 if len(label) > 20 else 9)
