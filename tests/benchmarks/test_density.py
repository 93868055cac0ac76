"""The density of configs/results/density.py: what its measures say of samples whose modes and place are known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from present import present
from scipy import stats

from entroloop.eval.measures.sets import Sets


@pytest.fixture(scope="module")
def density():
    path = Path(__file__).parents[2] / "configs" / "results" / "density.py"
    spec = importlib.util.spec_from_file_location("density", path)
    module = importlib.util.module_from_spec(present(spec))
    present(present(spec).loader).exec_module(module)
    return module


def test_the_density_is_that_of_the_mixture(density):
    x, _ = density.drawn(5, 7)
    each = [
        weight * stats.multivariate_normal(centre, width**2).pdf(x)
        for weight, centre, width in zip(density.WEIGHTS, density.CENTRES, density.WIDTHS, strict=True)
    ]
    assert density.log_density(x)[0] == pytest.approx(np.log(np.sum(each, axis=0)))
    assert np.array_equal(density.log_density(x)[1], np.argmax(each, axis=0))


def test_measures_of_samples_whose_modes_and_place_are_known(density):
    x, modes = density.drawn(8192, 3)
    own = Sets(x, x[:10])
    assert density.off_support(own) == pytest.approx(0.001, abs=0.001)
    assert density.missed_modes(own) == 0
    assert density.mode_divergence(own) < 0.01
    half = x.copy()
    half[::2] += 100  # off the support
    assert density.off_support(Sets(half, x[:10])) == pytest.approx(0.5, abs=0.001)
    without = Sets(x[modes != 3], x[:10])
    assert density.missed_modes(without) == pytest.approx(1 / 32)
    assert density.mode_divergence(without) > 0.1
