"""Scatter plots of a run on vectors: training sets and samples, generation by generation.

    sealed vectors of a run  ->  one Cloud per generation  ->  Figure

Vectors of more than two features are projected onto the two principal components of generation 0's training set.

n points, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from entroloop.data.store.dataset import Dataset
from entroloop.eval.report.pictures import available, candidates, sealed_set
from entroloop.eval.report.runs import Run
from entroloop.eval.report.style import STYLE

COLUMNS = 5  # generations side by side
SHOWN = 1000  # points per panel
MARGIN = 0.25  # on each side, as a share of the range of generation 0's training set
TRAINING, SAMPLES, REJECTED = "#333333", "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Cloud:
    """The first points of the training set, of the samples and of the rejected candidates: float32 [n, 2]."""

    generation: int
    training: NDArray[np.float32]
    samples: NDArray[np.float32]
    rejected: NDArray[np.float32]


def clouds(run: Run) -> tuple[list[Cloud], int]:
    """The Clouds of the sampled generations of a run on vectors, and D; for a run on images no Clouds, and 0."""
    found: list[Cloud] = []
    features = 0
    axes: NDArray[np.float32] | None = None
    center: NDArray[np.float32] | None = None
    for generation in range(run.planned):
        selected, sampled = (sealed_set(run, generation, name) for name in ("selected", "samples"))
        if selected is None or sampled is None or len(selected.shape) != 1 or selected.shape[0] < 2:
            break
        training, samples = _first(selected), _first(sampled)
        if axes is None or center is None:
            features, center, axes = selected.shape[0], training.mean(0), _axes(training)
        rejected = _rejected(run, generation, features)
        if features > 2:
            training, samples, rejected = ((one - center) @ axes for one in (training, samples, rejected))
        found.append(Cloud(generation, training, samples, rejected))
    return found, features


def _first(one: Dataset) -> NDArray[np.float32]:
    return one.take(np.arange(min(SHOWN, available(one)))).astype(np.float32, copy=False)


def _rejected(run: Run, generation: int, features: int) -> NDArray[np.float32]:
    if generation == 0 or (found := candidates(run, generation)) is None:
        return np.empty((0, features), np.float32)
    made, taken = found
    return made.take(np.flatnonzero(~taken)[:SHOWN]).astype(np.float32, copy=False)


def _axes(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first two principal components, each with its largest entry positive: float32 [D, 2]."""
    rows = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][:2]
    largest = np.abs(rows).argmax(1)
    signs: NDArray[np.float32] = np.sign(rows[np.arange(len(rows)), largest])
    return (rows * signs[:, None]).T


def outside(found: Sequence[Cloud]) -> int:
    """Number of samples of the last generation outside the axes."""
    low, high = limits(found[0].training)
    last = found[-1].samples
    return int(((last < low) | (last > high)).any(1).sum())


def limits(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    low, high = points.min(0), points.max(0)
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def scatter(found: Sequence[Cloud]) -> Figure:
    """One column per generation: the training set, over the candidates rejected for it, above the samples; all on the
    same axes."""
    bands = -(-len(found) // COLUMNS)
    columns = min(COLUMNS, len(found))
    low, high = limits(found[0].training)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.9 * columns + 0.5, 4.1 * bands), layout="constrained")
        panels: NDArray[Any] = figure.subplots(2 * bands, columns, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        for i, cloud in enumerate(found):
            band, column = divmod(i, columns)
            pairs = ((cloud.training, TRAINING, "training"), (cloud.samples, SAMPLES, "samples"))
            for row, (points, colour, name) in enumerate(pairs):
                panel = panels[2 * band + row, column]
                if row == 0 and len(cloud.rejected):
                    _panel(panel, cloud.rejected, REJECTED)
                _panel(panel, points, colour)
                if row == 0:
                    panel.set_title(f"generation {cloud.generation}")
                if column == 0:
                    panel.set_ylabel(name)
        panels[0, 0].set_xlim(low[0], high[0])
        panels[0, 0].set_ylim(low[1], high[1])
    return figure


def _panel(panel: Axes, points: NDArray[np.float32], colour: str) -> None:
    panel.set_axis_on()
    panel.tick_params(labelsize=7)
    panel.scatter(points[:, 0], points[:, 1], s=3, c=colour, alpha=0.6, linewidths=0, rasterized=True)
