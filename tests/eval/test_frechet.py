"""Frechet distance and spectrum against closed forms, scipy and torchmetrics."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from entroloop.eval.measures.frechet import (
    Moments,
    effective_rank,
    frechet_distance,
    merge,
    moments,
    principal_axes,
    spectrum,
)


def features(n, d, seed=0, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99))
    return (torch.randn(n, d, generator=generator) @ mixing * scale + offset).float()


def by_scipy(x, y):
    """The textbook formula in float64, with scipy's square root of the non-symmetric product."""
    a, b = x.double().numpy(), y.double().numpy()
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(sa @ sb)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * np.real(root)))


def distance(x, y):
    return frechet_distance(moments(x), moments(y))


def test_agrees_with_scipy():
    x, y = features(400, 24), features(300, 24, seed=1, scale=1.5, offset=0.3)
    assert distance(x, y) == pytest.approx(by_scipy(x, y), rel=1e-9)


def test_agrees_with_torchmetrics_over_the_same_features():
    x, y = features(200, 16), features(150, 16, seed=1, offset=1.0)
    fid = FrechetInceptionDistance(feature=_Identity(), normalize=True, input_img_size=(1, 4, 4), antialias=False)
    fid.set_dtype(torch.float64)
    fid.update(x.reshape(-1, 1, 4, 4), real=True)
    fid.update(y.reshape(-1, 1, 4, 4), real=False)
    assert distance(x, y) == pytest.approx(float(fid.compute()), rel=1e-5)


class _Identity(nn.Module):
    num_features = 16

    def forward(self, x):
        return x.flatten(1)


def test_a_copy_is_at_zero_also_with_fewer_points_than_features():
    for n, d in ((300, 20), (30, 200)):
        x = features(n, d)
        assert distance(x, x.clone()) < 1e-9 * float(moments(x).covariance.trace())


def test_a_shifted_copy_is_at_the_squared_shift():
    x = features(500, 12)
    assert distance(x, x + 2.0) == pytest.approx(12 * 4.0, rel=1e-4)


def test_a_scaled_copy_is_at_its_closed_form():
    x = features(500, 12)
    x -= x.mean(0)
    assert distance(x, 3 * x) == pytest.approx(4 * float(moments(x).covariance.trace()), rel=1e-5)


def test_fewer_points_than_features_agrees_with_the_thin_product():
    x, y = features(20, 100), features(25, 100, seed=1, offset=0.5)
    a, b = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    cross = torch.linalg.svdvals(a @ b.T).sum() / math.sqrt(19 * 24)
    shift = (x.double().mean(0) - y.double().mean(0)).square().sum()
    exact = float(shift + a.square().sum() / 19 + b.square().sum() / 24 - 2 * cross)
    assert distance(x, y) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 25), (20, 300), (300, 250)])
def test_rows_and_sums_alone_give_the_same(n, m):
    """Few rows are kept and decomposed; from sums alone, as many ranks have them, the covariance may be singular."""
    a, b = moments(features(n, 60)), moments(features(m, 60, seed=1, offset=0.5))
    sums = [Moments(one.n, one.mean, one.scatter) for one in (a, b)]
    assert frechet_distance(*sums) == pytest.approx(frechet_distance(a, b), rel=1e-7)
    k = min(n, 60) - 1
    torch.testing.assert_close(spectrum(sums[0])[:k], spectrum(a)[:k], rtol=1e-9, atol=1e-9)
    alike = (principal_axes(sums[0], 5) * principal_axes(a, 5)).sum(0).abs()
    torch.testing.assert_close(alike, torch.ones(5, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_few_points_of_large_images_never_make_a_square_of_the_features():
    """The scatter of 3 x 256 x 256 pixels would take 309 GB."""
    d = 3 * 256 * 256
    a, b = (moments(torch.randn(6, d, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    assert a.sums is None
    assert frechet_distance(a, b) > 0
    assert len(spectrum(a)) == 6
    assert principal_axes(a, 3).shape == (d, 3)


def test_identical_points_have_no_spread_and_distance_stays_finite():
    x = torch.ones(10, 5)
    assert distance(x, x) == 0
    assert distance(x, features(50, 5)) > 0
    assert effective_rank(spectrum(moments(x))) == 0


@pytest.mark.parametrize("cuts", [(0, 100), (30, 70), (1, 2)])
def test_merged_moments_equal_those_of_the_whole(cuts):
    x = features(100, 8, offset=1e4)
    parts = x[: cuts[0]], x[cuts[0] : cuts[1]], x[cuts[1] :]
    merged = merge(merge(moments(parts[0]), moments(parts[1])), moments(parts[2]))
    exact = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(merged.covariance.numpy(), exact, rtol=1e-9, atol=1e-9 * np.abs(exact).max())
    np.testing.assert_allclose(merged.mean.numpy(), x.double().mean(0).numpy(), rtol=1e-12)
    assert merged.n == 100


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.ones(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0, 0], dtype=torch.float64)) == pytest.approx(1)
    assert effective_rank(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)) == pytest.approx(2**1.5)


def test_spectrum_is_the_square_of_the_singular_values():
    x = features(60, 9)
    centred = x.double() - x.double().mean(0)
    expected = torch.linalg.svdvals(centred).square() / 59
    torch.testing.assert_close(spectrum(moments(x)), expected, rtol=1e-9, atol=1e-9)
