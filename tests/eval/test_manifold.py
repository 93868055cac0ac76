"""Precision, recall, density and coverage against the prdc package and on cases that can be counted by hand."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from entroloop.eval.measures import manifold
from entroloop.eval.measures.manifold import density, share_inside

prdc = pytest.importorskip("prdc")


def cloud(n, d=6, seed=0, offset=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset


def radii(x, k):
    distances = NearestNeighbors(n_neighbors=k + 1).fit(x.double().numpy()).kneighbors(x.double().numpy())[0]
    return torch.from_numpy(distances[:, k])


def balls_around(points, centres, radii, *, closed):
    return manifold.balls_around(points, centres, [(radii, closed)])[0][0]


def ours(real, fake, k):
    balls = [(radii(real, k), True), (radii(real, k), False)]
    (closed, _), (opened, filled) = manifold.balls_around(fake, real, balls)
    return {
        "precision": share_inside(closed),
        "recall": share_inside(balls_around(real, fake, radii(fake, k), closed=True)),
        "density": density(opened, k),
        "coverage": share_inside(filled),
    }


def slow(points, centres, radius, closed):
    """The definition, pair by pair."""
    distance = (points.double()[:, None] - centres.double()).square().sum(2).sqrt()
    return distance <= radius * (1 + 1e-9) if closed else distance < radius * (1 - 1e-9)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 1e8], ids=lambda spread: f"an outlier at {spread:g}")
@pytest.mark.parametrize("d", [1, 16, 300])
def test_counts_of_points_and_balls_are_those_of_the_definition(monkeypatch, d, spread):
    monkeypatch.setattr(manifold, "_BLOCK", 32)
    real, fake = cloud(70, d), cloud(50, d, seed=1)
    fake[:10] = real[:10]  # copies, and points on the surface of balls
    real[20:30] = real[10:20]
    fake[40] *= spread
    balls = [(radii(real, 3), True), (radii(real, 5), False), (torch.zeros(70, dtype=torch.float64), True)]
    for (radius, closed), (of_points, of_balls) in zip(balls, manifold.balls_around(fake, real, balls), strict=True):
        inside = slow(fake, real, radius, closed)
        assert of_points.tolist() == inside.sum(1).tolist()
        assert of_balls.tolist() == inside.sum(0).tolist()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_agrees_with_prdc(k, capsys):
    real, fake = cloud(150), cloud(90, seed=1, offset=0.4)
    expected = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
    assert ours(real, fake, k) == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-12)


def test_blocks_do_not_change_the_counts(monkeypatch):
    real, fake = cloud(150), cloud(90, seed=1)
    whole = balls_around(fake, real, radii(real, 3), closed=True)
    monkeypatch.setattr(manifold, "_BLOCK", 17)
    assert torch.equal(balls_around(fake, real, radii(real, 3), closed=True), whole)


def test_a_copy_has_precision_recall_density_and_coverage_one():
    real = cloud(80)
    assert ours(real, real.clone(), 5) == pytest.approx(
        {"precision": 1, "recall": 1, "density": 1, "coverage": 1}, abs=1e-12
    )


def test_a_dropped_mode_costs_recall_and_coverage_but_not_precision():
    real = torch.cat([cloud(100), cloud(100, seed=1, offset=50)])
    found = ours(real, cloud(100, seed=2), 5)
    assert found["recall"] <= 0.5
    assert found["coverage"] <= 0.5
    assert found["precision"] > 0.85


def test_far_away_points_have_nothing():
    assert ours(cloud(50), cloud(50, seed=1, offset=1e3), 3) == {
        "precision": 0,
        "recall": 0,
        "density": 0,
        "coverage": 0,
    }


def test_points_on_the_surface_belong_to_closed_balls_only():
    centre, point, radius = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([5.0], dtype=torch.float64)
    assert balls_around(point, centre, radius, closed=True).tolist() == [1]
    assert balls_around(point, centre, radius, closed=False).tolist() == [0]


def test_close_pairs_far_from_the_origin_are_told_apart():
    """The expanded product alone loses a distance of 0.02 between features of this size in float32."""
    base = cloud(40, d=384) * 54
    centres, points = base + 1e3, base + 1e3
    points = points.clone()
    points[:, 0] += 0.02
    gap = (points.double() - centres.double()).norm(dim=1)
    assert balls_around(points, centres, gap * 1.001, closed=True).tolist() == [1] * 40
    assert balls_around(points, centres, gap * 0.999, closed=True).tolist() == [0] * 40


def test_no_centres_and_no_points():
    assert balls_around(cloud(3), cloud(0), torch.zeros(0, dtype=torch.float64), closed=True).tolist() == [0, 0, 0]
    assert balls_around(cloud(0), cloud(3), torch.ones(3, dtype=torch.float64), closed=True).tolist() == []
    assert np.isfinite(density(torch.tensor([0, 0]), 5))
