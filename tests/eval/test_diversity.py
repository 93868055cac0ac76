"""Vendi score and KID against vendi-score, torchmetrics and the written-out formulas."""

import pytest
import torch
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance

from entroloop.eval.measures import diversity
from entroloop.eval.measures.diversity import (
    cosine_gram,
    kernel_distance,
    polynomial_kernel_diagonal,
    polynomial_kernel_sum,
    vendi_score,
)


def cloud(n, d, seed=0, offset=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset


def kid(x, y):
    xx = polynomial_kernel_sum(x, x) - polynomial_kernel_diagonal(x)
    yy = polynomial_kernel_sum(y, y) - polynomial_kernel_diagonal(y)
    return kernel_distance(xx, yy, polynomial_kernel_sum(x, y), len(x), len(y))


@pytest.mark.parametrize(("n", "d"), [(40, 8), (8, 40)])
def test_vendi_agrees_with_the_package(n, d):
    vendi = pytest.importorskip("vendi_score.vendi")
    x = cloud(n, d, offset=0.3)
    assert vendi_score(cosine_gram(x), n) == pytest.approx(float(vendi.score_dual(x.numpy(), normalize=True)), rel=1e-4)
    kernel = torch.nn.functional.cosine_similarity(x.double()[:, None], x.double()[None], dim=2)
    assert vendi_score(cosine_gram(x), n) == pytest.approx(float(vendi.score_K(kernel.numpy())), rel=1e-6)


def test_vendi_counts_orthogonal_modes():
    modes = torch.eye(5).repeat(20, 1) * 7
    assert vendi_score(cosine_gram(modes), 100) == pytest.approx(5)
    assert vendi_score(cosine_gram(modes[:1].repeat(100, 1)), 100) == pytest.approx(1)


def test_vendi_survives_rows_of_zeros():
    assert vendi_score(cosine_gram(torch.cat([torch.zeros(1, 4), cloud(9, 4)])), 10) > 1


def test_kid_agrees_with_torchmetrics_on_one_subset_of_everything():
    x, y = cloud(60, 16), cloud(60, 16, seed=1, offset=0.5)
    metric = KernelInceptionDistance(feature=_Identity(), subsets=1, subset_size=60, normalize=True)
    metric.update(x.reshape(-1, 1, 4, 4), real=True)
    metric.update(y.reshape(-1, 1, 4, 4), real=False)
    assert kid(x, y) == pytest.approx(float(metric.compute()[0]), rel=1e-4)


class _Identity(nn.Module):
    num_features = 16

    def forward(self, x):
        return x.flatten(1)


def test_kid_is_unbiased():
    """Two halves of one distribution: values on both sides of zero, mean zero within three standard errors."""
    values = torch.tensor([kid(cloud(20, 4, seed=2 * i), cloud(20, 4, seed=2 * i + 1)) for i in range(200)])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert (values < 0).any()


def test_kid_blocks_add_up(monkeypatch):
    x, y = cloud(50, 6), cloud(33, 6, seed=1)
    whole = kid(x, y)
    monkeypatch.setattr(diversity, "_BLOCK", 7)
    assert kid(x, y) == pytest.approx(whole, rel=1e-12)
