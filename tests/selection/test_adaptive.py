import numpy as np
import pytest
from sklearn.datasets import load_digits

from entroloop.data.errors import UserError
from entroloop.selection import kl_entropy, nearest, select

X = load_digits().data[:800].astype(np.float32)


def _entropy(ids):
    return kl_entropy(X[ids]).nats


def test_strength_leads_from_random_to_greedy():
    spread = [_entropy(select(X, 300, "adaptive-threshold", strength=s).ids) for s in (0, 0.4, 0.7, 1)]
    assert spread == sorted(spread)
    low, high = _entropy(select(X, 300, "random").ids), _entropy(select(X, 300, "greedy").ids)
    assert low < spread[1] < spread[2] < high
    default = _entropy(select(X, 300, "adaptive-threshold").ids)
    assert low + 0.1 * (high - low) < default < high - 0.1 * (high - low)


@pytest.mark.parametrize("size", [1, 2, 400, 800])
def test_reaches_exactly_the_size_asked_for(size):
    assert len(set(select(X, size, "adaptive-threshold", strength=0.9).ids)) == size


def test_scaling_the_features_leaves_the_choice():
    ids = select(X, 200, "adaptive-threshold").ids
    for scale in (np.float32(2.0**-20), np.float32(1024)):
        np.testing.assert_array_equal(select(X * scale, 200, "adaptive-threshold").ids, ids)


def test_one_pass_is_enough_below_half_the_greedy_radius():
    x = np.random.default_rng(0).uniform(size=(2000, 2))
    chosen = select(x, 300, "adaptive-threshold", strength=0.4)
    greedy = select(x, 300, "greedy", start=int(chosen.ids[0]))
    assert chosen.info["threshold"] < greedy.radii[-1] / 2
    assert chosen.radii[1:].min() > chosen.info["threshold"], "nothing was taken in a later, weaker pass"


def test_matching_meets_the_neighbour_distances_of_a_reference():
    reference = select(X, 200, "adaptive-threshold", strength=0.8, seed=9).ids
    chosen = select(X, 200, "entropy-matching", reference=X[reference], seed=1)
    assert abs(chosen.info["gap"]) < 0.02

    def quantiles(ids):
        return np.log(np.quantile(nearest(X[ids], X[ids], exclude_self=True)[0], np.linspace(0.1, 0.9, 9)))

    gap = np.abs(quantiles(chosen.ids) - quantiles(reference)).mean()
    overshoot = np.abs(quantiles(select(X, 200, "greedy").ids) - quantiles(reference)).mean()
    assert gap < overshoot


def test_matching_takes_the_nearest_end_where_the_reference_is_out_of_reach():
    tight = select(X, 200, "entropy-matching", reference=X[:200] * 0.01)
    assert (tight.info["strength"], tight.info["gap"] > 0) == (0.0, True)
    wide = select(X, 200, "entropy-matching", reference=X[:200] * 100)
    assert (wide.info["strength"], wide.info["gap"] < 0) == (1.0, True)


def test_matching_without_reference_is_the_adaptive_filter():
    expected = select(X, 100, "adaptive-threshold")
    np.testing.assert_array_equal(select(X, 100, "entropy-matching").ids, expected.ids)
    with pytest.raises(UserError, match="at least 2 rows of reference"):
        select(X, 100, "entropy-matching", reference=X[:1])


def test_covariance_is_nearer_to_the_reference_than_that_of_random_rows():
    r = np.random.default_rng(0)
    x = r.normal(size=(3000, 8)) * np.linspace(1.2, 3, 8)
    reference = r.normal(size=(2000, 8)) * np.linspace(1, 1.5, 8)
    target = np.cov(reference.T)

    def gap(ids):
        return np.linalg.norm(np.cov(x[ids].T) - target) / np.linalg.norm(target)

    matched = gap(select(x, 400, "covariance-matching", reference=reference).ids)
    assert matched < 0.3 * gap(select(x, 400, "random").ids)
    with pytest.raises(UserError, match="window: must be at least 1, is 0"):
        select(x, 10, "covariance-matching", window=0)
