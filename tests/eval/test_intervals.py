"""Intervals of measures: their width where it is known, and how often they hold the truth."""

import math

import numpy as np
import pytest

from entroloop.eval.measures.intervals import GIVEN_TRAINING, intervals
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets


def _points(rng, n, d, scale=1.0):
    return (scale * rng.standard_normal((n, d))).astype(np.float32)


def test_the_width_where_theory_gives_it():
    rng, n, d = np.random.default_rng(0), 300, 6
    sets = Sets(_points(rng, n, d), _points(rng, n, d))
    values = measure(sets, only=["generalization_score", "covariance_trace"]).values
    found = intervals(sets, values, 300, seed=0)
    errors = {
        "generalization_score": float(sets.to_training[0][:, 0].std()) / math.sqrt(n),
        "covariance_trace": math.sqrt(2 * d / (n - 1)),
    }
    for name, error in errors.items():
        low, high = found[name]
        assert low < values[name] < high
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2), name
    assert found == intervals(sets, values, 300, seed=0)
    assert found != intervals(sets, values, 300, seed=1)


def test_what_has_no_interval_or_no_value():
    rng = np.random.default_rng(0)
    sets = Sets(_points(rng, 40, 3), _points(rng, 60, 3), _points(rng, 50, 3))
    values = measure(sets).values
    found = intervals(sets, values, 3, seed=0)
    assert set(values) - set(found) == {"ct_score"}
    assert all(map(math.isnan, (values["generated_entropy"], *found["generated_entropy"])))
    assert all(0 <= end <= 1 for name in ("precision", "recall", "coverage") for end in found[name])


@pytest.mark.long
def test_how_often_intervals_hold_the_truth():
    """The truth is the mean over many draws of the sets; for measures of copying the training set stays as it is."""
    rng, n, d, runs, draws = np.random.default_rng(0), 80, 4, 60, 60
    names = ["frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "training_entropy",
             "generated_entropy", "spread_gap", "covariance_trace", "vendi_score"]  # fmt: skip
    copying = [name for name in GIVEN_TRAINING if name != "memorized_fraction"]
    fixed = _points(rng, n, d)

    def all_drawn():
        return Sets(_points(rng, n, d, 0.8), _points(rng, n, d))

    def beside_fixed():
        return Sets(_points(rng, n, d, 0.8), fixed, _points(rng, n, d))

    for draw, wanted in ((all_drawn, names), (beside_fixed, copying)):
        many = [measure(draw(), only=wanted).values for _ in range(600)]
        truth = {name: float(np.mean([values[name] for values in many])) for name in wanted}
        held = dict.fromkeys(wanted, 0)
        for run in range(runs):
            sets = draw()
            for name, (low, high) in intervals(sets, measure(sets, only=wanted).values, draws, seed=run).items():
                held[name] += low <= truth[name] <= high
        print({name: count / runs for name, count in held.items()})
        assert all(count >= 0.8 * runs for count in held.values()), held
