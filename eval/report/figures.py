"""Every figure of the report with its alternative text and caption.

runs  ->  main_figures | loss_figures | points_figures | figures  ->  Picture
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from entroloop.eval.catalogue import HEADLINE, SHOWN, title
from entroloop.eval.report import headline, pictures, plots, points, progress, statistics, style, tables
from entroloop.eval.report.arms import Arm, arms, comparable
from entroloop.eval.report.runs import Run

_SAFE = " !'()*+,-./:;=?@[]^_{|}~$"  # need no escape in a data URI, nor in HTML between double quotes


@dataclass(frozen=True)
class Picture:
    """A figure on the page: data URI, alternative text, caption and a name for files."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""

    @property
    def uri(self) -> Markup:
        """For an attribute in double quotes; a sixth shorter than base64."""
        text = re.sub(r"<[^>']*>", lambda tag: tag[0].replace('"', "'"), style.svg(self.figure).decode())
        return Markup("data:image/svg+xml," + urllib.parse.quote(text, safe=_SAFE))


def main_figures(runs: Sequence[Run]) -> list[Picture]:
    """The figures a reader needs first: distance to held-out data, generalization score and entropy."""
    names = tables.encoders(runs)
    if not names:
        return []
    score, distance = tables.score_encoder(names), tables.distance_encoder(runs, names)
    return list(curves(runs, [(distance if m == "frechet_distance" else score, m) for m in HEADLINE]))


def figures(runs: Sequence[Run]) -> list[Picture]:
    """Every figure of the report."""
    names = tables.encoders(runs)
    wanted = [(name, measure) for name in names for measure in tables.measures_of(runs, name)]
    return [*curves(runs, wanted), *overview(runs, names, names)]


def curves(runs: Sequence[Run], wanted: Iterable[tuple[str, str]]) -> Iterator[Picture]:
    groups = arms(runs)
    for encoder, measure in wanted:
        figure = plots.measure_curves(groups, runs, encoder, measure)
        about = SHOWN[measure].reading if measure in SHOWN else ""
        yield from _drawn(f"{measure}-{slug(encoder)}", figure, _curve_words(groups, encoder, measure), about)


def overview(runs: Sequence[Run], names: Sequence[str], spectra: Sequence[str]) -> Iterator[Picture]:
    """All figures but the curves of measures; `spectra` are the encoders whose spectra are drawn."""
    groups = arms(runs)
    for name in names:
        scatter = plots.entropy_scatter(groups, name)
        yield from _drawn(f"entropy-score-{slug(name)}", scatter, _scatter_words(groups, name))
    for name in (name for name in names if name in spectra):
        alt = f"Line charts of the leading covariance eigenvalues in {name} features, up to five generations."
        yield from _drawn(f"spectra-{slug(name)}", plots.spectra(groups, name), alt)
    yield from points_figures(groups)
    yield from _drawn("provenance", plots.provenance_areas(groups), _provenance_words(groups))
    yield from loss_figures(runs)
    encoders = " and ".join(headline.selecting_encoders(runs)) or "the selection's"
    about = (
        "Distance of a chosen candidate to the nearest one chosen before: the median of each selection, the mean over "
        f"runs. Distances are those of the selection, in {encoders} features, and are comparable between arms that "
        "select with the same encoder and metric."
    )
    alt = "Line chart of the median radius of selection by generation."
    yield from _drawn("radii", progress.radii(groups), alt, about)
    alt = "Bar chart of seconds spent by phase in each run; the table below has the numbers."
    yield from _drawn("time", progress.costs(runs), alt)


def _drawn(name: str, figure: Figure | None, alt: str, caption: str = "") -> list[Picture]:
    """The picture, if there is a figure."""
    return [] if figure is None else [Picture(name, figure, alt, caption)]


def loss_figures(runs: Sequence[Run]) -> list[Picture]:
    """The loss of training, once anything has been trained."""
    alt = "Line charts of the training loss against images trained on, up to five generations of one run of each arm."
    return _drawn("loss", progress.losses(arms(runs)), alt)


def points_figures(groups: Sequence[Arm]) -> Iterator[Picture]:
    """Training sets and samples of runs on vectors, one figure per arm."""
    for label, run in pictures.shown_runs(groups).items():
        found, features = points.clouds(run)
        if not found:
            continue
        first, last = found[0].generation, found[-1].generation
        alt = f"Scatter plots of training sets and samples, generations {first} to {last}, {label}."
        shown = "the two features" if features == 2 else f"two principal components of {features} features"
        beyond = points.outside(found)
        caption = f"{label}: {shown}; the axes extend a quarter beyond the range of generation 0's training set."
        if any(len(cloud.rejected) for cloud in found):
            caption += " Candidates that were rejected for a training set are orange."
        if beyond:
            caption += f" {beyond} of {len(found[-1].samples)} samples of generation {last} are outside the axes."
        yield Picture(f"points-{slug(label)}", points.scatter(found), alt, caption)


def slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in name)


def _curve_words(groups: Sequence[Arm], encoder: str, measure: str) -> str:
    parts = []
    for arm in comparable(groups).measured:
        line = statistics.curve(arm, encoder, measure)
        if line.generations:
            ends = f"{statistics.number(line.mean[0])} to {statistics.number(line.mean[-1])}"
            parts.append(f"{arm.label} from {ends} (generation {line.generations[0]} to {line.generations[-1]})")
    return f"Line chart of {title(measure, encoder)} in {encoder} features by generation: {'; '.join(parts)}."


def _scatter_words(groups: Sequence[Arm], encoder: str) -> str:
    found = statistics.correlation([c for arm in groups for c in statistics.entropy_and_score(arm.runs, encoder)])
    words = f"Pearson r {statistics.number(found.r)} over {found.n} points" if found else "too few points to correlate"
    return f"Scatter plot of training-set entropy against log generalization score in {encoder} features: {words}."


def _provenance_words(groups: Sequence[Arm]) -> str:
    parts = []
    for arm in comparable(groups).measured:
        share = np.mean(arm.values(arm.generations[-1], "", "real_share"))
        parts.append(f"{arm.label} has {share:.0%} real images at generation {arm.generations[-1]}")
    return f"Stacked areas of where each training set's images come from: {'; '.join(parts)}."
