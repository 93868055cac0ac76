"""A density that is known exactly, as a source and as measures: 32 Gaussians in 8 dimensions with Zipf weights.

    points()  ->  ArraySource of 12,000 points, labelled with their Gaussian
    samples   ->  missed_modes | mode_divergence | off_support

A sample is on the support if its density is at least that of the least likely thousandth of the mixture's own points.
It belongs to the Gaussian that contributes most to its density.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from entroloop.data.sources.base import ArraySource
from entroloop.eval.measures.sets import Sets

MODES, DIMENSIONS = 32, 8
_random = np.random.Generator(np.random.Philox(2024))
CENTRES = 2 * _random.normal(size=(MODES, DIMENSIONS))
WIDTHS = 0.6 * np.exp(0.3 * _random.normal(size=MODES))
WEIGHTS = 1 / np.arange(1, MODES + 1)
WEIGHTS /= WEIGHTS.sum()


def drawn(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """n points of the mixture, [n, 8], and their Gaussians. Rounded to four decimals, as mathematical libraries may
    differ in the last bit."""
    random = np.random.Generator(np.random.Philox(seed))
    modes = random.choice(MODES, n, p=WEIGHTS)
    x = CENTRES[modes] + WIDTHS[modes, None] * random.normal(size=(n, DIMENSIONS))
    return x.round(4).astype(np.float32), modes.astype(np.int64)


def points() -> ArraySource:
    x, modes = drawn(12_000, 1)
    return ArraySource("density", "density", x, modes, prefix="density/")


def log_density(x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log density of each row of [n, 8] in nats, and its Gaussian."""
    squared = ((x[:, None, :].astype(np.float64) - CENTRES) ** 2).sum(2)
    normalizers = np.log(WEIGHTS) - DIMENSIONS * np.log(WIDTHS * np.sqrt(2 * np.pi))
    each = normalizers - squared / (2 * WIDTHS**2)
    return np.logaddexp.reduce(each, axis=1), each.argmax(1)


FLOOR = float(np.quantile(log_density(drawn(100_000, 2)[0])[0], 0.001))


def shares(sets: Sets) -> tuple[float, NDArray[np.float64]]:
    """Share of the samples off the support; number of samples on it by Gaussian, [32]."""
    found, modes = log_density(sets.gather(sets.generated).cpu().numpy())
    on = found >= FLOOR
    return float(1 - on.mean()), np.bincount(modes[on], minlength=MODES).astype(np.float64)


def off_support(sets: Sets) -> float:
    return shares(sets)[0]


def missed_modes(sets: Sets) -> float:
    """Share of the Gaussians with less than a quarter of the samples that their weight asks for, or with none."""
    _, counts = shares(sets)
    return float((counts < np.maximum(1, 0.25 * WEIGHTS * sets.n["generated"])).mean())


def mode_divergence(sets: Sets) -> float:
    """KL divergence in nats of the samples' weights of the Gaussians (half a sample added to each) from the true
    ones."""
    counts = shares(sets)[1] + 0.5
    return float((WEIGHTS * np.log(WEIGHTS / (counts / counts.sum()))).sum())
