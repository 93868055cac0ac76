import math

import numpy as np
import pytest
from present import present
from scipy.special import digamma, gammaln
from scipy.stats import special_ortho_group
from slow_references import nearest as slow_nearest
from slow_references import split
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.selection import generalization_score, kl_entropy


def _slow(x, k, floor=1e-10):
    distances, _ = slow_nearest(x, x, k, True)
    n, d = x.shape
    unit_ball = d / 2 * math.log(math.pi) - gammaln(d / 2 + 1)
    return digamma(n) - digamma(k) + unit_ball + d / n * np.log(np.maximum(distances[:, -1], floor)).sum()


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_gaussian_and_uniform_entropy_within_stated_tolerance(d, k):
    r = np.random.default_rng(d)
    n = 4000
    scales = np.arange(1, d + 1)
    rotation = special_ortho_group.rvs(d, random_state=0) if d > 1 else np.eye(1)
    gaussian = (r.normal(size=(n, d)) * scales) @ rotation
    analytic = d / 2 * math.log(2 * math.pi * math.e) + np.log(scales).sum()
    tolerance = 0.1 if d < 5 else 0.45  # bias from the edge of the cube; the spread is below 0.04
    assert kl_entropy(gaussian, k).nats == pytest.approx(analytic, abs=0.1)
    uniform = r.uniform(0, 3, size=(n, d))
    assert kl_entropy(uniform, k).nats == pytest.approx(d * math.log(3), abs=tolerance)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_equals_an_independent_float64_form(dtype, k):
    x = (np.random.default_rng(0).uniform(size=(200, 6)) * 250).astype(dtype)
    entropy = kl_entropy(x, k)
    assert entropy.nats == pytest.approx(_slow(x, k), rel=1e-12)
    assert (entropy.n, entropy.d, entropy.k) == (200, 6, k)


def test_duplicates_are_floored_and_counted():
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[10:20] = x[0]
    entropy = kl_entropy(x)
    assert entropy.floored == 11
    assert entropy.floor == 1e-10
    assert entropy.nats == pytest.approx(_slow(x, 1), rel=1e-12)
    higher = kl_entropy(x, floor=1e-3)
    assert higher.nats == pytest.approx(_slow(x, 1, 1e-3), rel=1e-12)
    with pytest.raises(UserError, match="floor: must be a positive number"):
        kl_entropy(x, floor=0)


def test_terms_of_single_points_average_to_the_estimate():
    x = np.random.default_rng(0).normal(size=(100, 4))
    entropy = kl_entropy(x, 2, per_sample=True)
    assert present(entropy.terms).shape == (100,)
    assert present(entropy.terms).mean() == pytest.approx(entropy.nats, rel=1e-12)
    assert kl_entropy(x, 2).terms is None


def test_scaling_adds_d_times_its_logarithm():
    x = np.random.default_rng(0).normal(size=(100, 4))
    assert kl_entropy(8 * x).nats == pytest.approx(kl_entropy(x).nats + 4 * math.log(8), rel=1e-12)


def test_generalization_score_is_the_mean_distance_to_training():
    r = np.random.default_rng(0)
    generated, training = r.normal(size=(40, 5)), r.normal(size=(60, 5))
    expected = slow_nearest(generated, training, 1, False)[0].mean()
    assert generalization_score(generated, training) == pytest.approx(expected, rel=1e-12)
    assert generalization_score(training, training) == 0.0
    with pytest.raises(UserError, match="generated: holds no rows"):
        generalization_score(generated[:0], training)


def _on_rank(world, x, y):
    entropy = kl_entropy(x[world.rank], 2, world=world, per_sample=True)
    score = generalization_score(x[world.rank], y[world.rank], world=world)
    return entropy.nats, entropy.n, entropy.floored, len(present(entropy.terms)), score


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks(size):
    r = np.random.default_rng(0)
    x, y = r.normal(size=(80, 4)), r.normal(size=(50, 4))
    whole, score = kl_entropy(x, 2), generalization_score(x, y)
    for rank, (nats, n, floored, terms, got) in enumerate(on_threads(size, _on_rank, split(x, size), split(y, size))):
        assert nats == pytest.approx(whole.nats, rel=1e-12)
        assert (n, floored, terms) == (80, 0, len(split(x, size)[rank]))
        assert got == pytest.approx(score, rel=1e-12)


def test_needs_more_points_than_k():
    with pytest.raises(UserError, match="k: must be between 1 and the 4 others, is 5"):
        kl_entropy(np.eye(5), 5)
