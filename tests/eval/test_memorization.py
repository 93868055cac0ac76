"""Measures of copying, counted by hand and against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from entroloop.eval.measures.memorization import (
    authenticity,
    calibrated_distance,
    ct_score,
    mann_whitney_z,
    memorized_fraction,
    share_within,
)
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets


def test_memorized_fraction_counts_ratios_below_a_third():
    distances = torch.tensor([[1.0, 3.1], [1.0, 2.9], [0.0, 5.0], [2.0, 2.0]], dtype=torch.float64)
    assert memorized_fraction(distances) == 0.5
    assert memorized_fraction(distances, ratio=0.5) == 0.75


def test_exact_copies_count_also_where_the_training_set_holds_them_twice():
    assert memorized_fraction(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)) == 2 / 3


def test_near_duplicates_hide_from_the_ratio_but_not_from_the_calibrated_distance():
    heldout = torch.linspace(1, 2, 101, dtype=torch.float64)
    limit = calibrated_distance(heldout)
    assert limit == pytest.approx(1.01)
    assert share_within(heldout, limit) == pytest.approx(2 / 101)
    copies_of_twins = torch.tensor([[0.01, 0.02]] * 10, dtype=torch.float64)
    assert memorized_fraction(copies_of_twins) == 0
    assert share_within(copies_of_twins[:, 0], limit) == 1


def test_authenticity_in_percent():
    nearest = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    ids = torch.tensor([0, 0, 1, 1])
    training_nearest = torch.tensor([1.0, 2.0], dtype=torch.float64)
    # Only where the training point has a closer companion than the generated point: 1 < 2 and 2 < 3.
    assert authenticity(nearest, ids, training_nearest) == 50


def test_mann_whitney_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=80), rng.normal(0.3, size=60)
    expected = mannwhitneyu(x, y, alternative="two-sided", method="asymptotic", use_continuity=False).pvalue
    z = mann_whitney_z(x, y)
    assert z < 0
    assert math.erfc(abs(z) / math.sqrt(2)) == pytest.approx(expected, rel=1e-9)


def test_ct_score_weighs_cells_by_held_out_share_and_leaves_thin_ones_out():
    rng = np.random.default_rng(1)
    generated, heldout = rng.random(200), rng.random(100)
    our_cell, their_cell = np.repeat([0, 1, 2], [90, 100, 10]), np.repeat([0, 1, 2], [30, 50, 20])
    z = [mann_whitney_z(generated[our_cell == c], heldout[their_cell == c]) for c in range(3)]
    assert ct_score(generated, our_cell, heldout, their_cell) == pytest.approx((30 * z[0] + 50 * z[1]) / 80)


def test_ct_score_tells_copying_from_underfitting():
    heldout = np.random.default_rng(2).random(100) + 1
    one_cell = np.zeros(100, dtype=np.int64)
    assert ct_score(heldout * 0.1, one_cell, heldout, one_cell) < -5
    assert ct_score(heldout * 10, one_cell, heldout, one_cell) > 5
    assert abs(ct_score(heldout.copy(), one_cell, heldout, one_cell)) < 1e-9
    assert math.isnan(ct_score(np.array([]), np.array([], dtype=np.int64), heldout, one_cell))


def test_ct_score_against_sklearn_and_scipy():
    """The whole measure built from others' parts: PCA, k-means, neighbours within a cell, Mann-Whitney U."""
    r = np.random.default_rng(0)
    centres = 12 * np.eye(3, 80)

    def drawn(n, shares):
        return (centres[r.choice(3, n, p=shares)] + r.normal(size=(n, 80))).astype(np.float32)

    training, reference = drawn(600, (0.5, 0.3, 0.2)), drawn(300, (0.4, 0.4, 0.2))
    generated = training[:240] + 0.5 * r.normal(size=(240, 80)).astype(np.float32)
    pca = PCA(64, svd_solver="full").fit(training.astype(np.float64))
    cells = KMeans(3, n_init=10, random_state=1).fit(pca.transform(training))
    total = 0.0
    for cell in range(3):
        bank = NearestNeighbors().fit(pca.transform(training)[cells.labels_ == cell])
        ours, theirs = (
            bank.kneighbors(pca.transform(x)[cells.predict(pca.transform(x)) == cell], 1)[0][:, 0]
            for x in (generated, reference)
        )
        m, n = len(ours), len(theirs)
        u = mannwhitneyu(ours, theirs).statistic
        total += n * (u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)
    found = measure(Sets(generated, training, reference), only=("ct_score",)).values["ct_score"]
    assert found == pytest.approx(total / 300, abs=0.02)
    assert found < -5
