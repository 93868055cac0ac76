"""Herding gives the ids of a slow form in whole numbers, at any number of ranks, and matches the reference."""

import numpy as np
import pytest
from ranks import on_ranks
from scipy.spatial.distance import cdist
from slow_references import hard_cases, split_with_gap
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.selection import select
from entroloop.selection.rules import herding as module

SEED, SIZE = 5, 60


def _rounded(x, bits):
    """Whole numbers in units of 2^-bits of the power of two above the largest entry of each row, and the units."""
    unit = np.exp2(np.frexp(np.abs(x).max(1, keepdims=True))[1].astype(float) - bits)
    return np.round(x / unit).astype(np.int64).astype(object), unit


def slow_herding(x, reference, size, block):
    """From the definition, in Python's whole numbers: sums are formed anew for every pick."""
    x, reference = x.astype(np.float64), reference.astype(np.float64)
    draw = np.random.default_rng([SEED, *b"herding"])
    sample = reference[draw.permutation(len(reference))[:1024]]
    i = draw.integers(len(sample), size=1 << 16)
    j = (i + draw.integers(1, len(sample), size=1 << 16)) % len(sample)
    distances = np.sqrt(((sample[i] - sample[j]) ** 2).sum(1))
    bandwidth = (np.median(distances) or distances.max() or 1) / 2
    normal = draw.normal(size=(x.shape[1], 256))
    waves, unit = _rounded(normal.reshape(1, -1), 16)

    def embedded(rows):
        whole, step = _rounded((rows - sample[0]) / bandwidth, 37 - int(x.shape[1]).bit_length())
        angle = (whole @ waves.reshape(normal.shape)).astype(np.float64) * step * unit
        return np.round(127 * np.concatenate([np.cos(angle), np.sin(angle)], 1)).astype(int).astype(object)

    scale = 2 ** (29 - size.bit_length())
    sums = embedded(reference).sum(0)
    target = np.array([round(int(s) * scale / len(reference)) for s in sums], dtype=object)
    order = np.random.default_rng([SEED, *b"order"]).permutation(len(x))
    chosen: list[int] = []
    for start in range(0, len(x), block):
        waiting, turn = list(order[start : start + block]), 0
        wanted = size * (start + len(waiting)) // len(x)
        features = dict(zip(waiting, embedded(x[waiting]), strict=True))
        before = sum(embedded(x[chosen])) if chosen else 0
        while len(chosen) < wanted:
            turn = max(0, min(turn, len(waiting) - 64)) if turn < len(waiting) else 0
            left = (len(chosen) + 1) * target - scale * (before + sum(features[c] for c in chosen if c in features))
            scores = [int((features[c] * left).sum()) for c in waiting[turn : turn + 64]]
            best = turn + scores.index(max(scores))
            chosen.append(waiting[best])
            waiting[best] = waiting[-1]
            waiting.pop()
            turn += 64
    return np.array(chosen)


def cases():
    """Candidates and a reference of the same kind, from rows that are hard for rounding."""
    return {name: (x, x[:: max(1, len(x) // 41)]) for name, x in hard_cases().items() if len(x) > 1}


@pytest.mark.parametrize(
    "name", ["gaussian", "lattice, many ties", "exact duplicates", "constant", "far from the origin"]
)
@pytest.mark.parametrize("block", [8192, 50])
def test_the_ids_of_the_slow_form(name, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    x, reference = cases()[name]
    chosen = select(x, SIZE, "herding", seed=SEED, reference=reference)
    np.testing.assert_array_equal(chosen.ids, slow_herding(x, reference, SIZE, block))


def _on_rank(world, x, reference, options):
    mine, real = (split_with_gap(rows, world.size)[world.rank] for rows in (x, reference))
    return select(mine, SIZE, "herding", seed=SEED, world=world, reference=real, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_the_same_at_any_number_of_ranks(name, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    x, reference = cases()[name]
    alone = select(x, SIZE, "herding", seed=SEED, reference=reference)
    assert len(set(alone.ids)) == SIZE
    for size in (2, 3, 8, 16) if x.shape[1] < 100 else (3,):  # every rank draws its frequencies
        for found in on_threads(size, _on_rank, x, reference, {}):
            np.testing.assert_array_equal(found.ids, alone.ids)
            np.testing.assert_array_equal(found.radii, alone.radii)
            assert found.info == alone.info


@pytest.mark.slow
def test_the_same_in_processes():
    x, reference = cases()["clusters"]
    alone = select(x, SIZE, "herding", seed=SEED, reference=reference, metric="whitened")
    for found in on_ranks(2, _on_rank, x, reference, {"metric": "whitened"}):
        np.testing.assert_array_equal(found.ids, alone.ids)


def mmd(x, y):
    """The maximum mean discrepancy under the Gaussian kernel itself, without random frequencies."""
    bandwidth = np.median(cdist(y, y)[np.triu_indices(len(y), 1)]) / 2
    mean = [np.exp(-cdist(a, b, "sqeuclidean") / (2 * bandwidth**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    return float(np.sqrt(mean[0] + mean[1] - 2 * mean[2]))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.5])
def test_chosen_rows_match_the_reference_better_than_random_ones_do(factor):
    """Samples that are less, as much and more spread than the reference, with one mode twice too frequent."""
    r = np.random.default_rng(1)
    centres = 3 * r.normal(size=(5, 6))
    shares = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    reference = centres[r.integers(5, size=400)] + r.normal(size=(400, 6))
    x = np.concatenate([centres[r.choice(5, 2500, p=shares)] + factor * r.normal(size=(2500, 6)), reference[:200]])
    random, herded = (
        mmd(x[select(x, 400, name, reference=reference).ids], reference) for name in ("random", "herding")
    )
    assert herded < 0.4 * random


def test_scaled_features_give_the_same_ids():
    x, reference = cases()["gaussian"]
    for scale in (0.125, 64):
        scaled = select(scale * x, SIZE, "herding", seed=SEED, reference=scale * reference)
        np.testing.assert_array_equal(scaled.ids, select(x, SIZE, "herding", seed=SEED, reference=reference).ids)


@pytest.mark.parametrize("reference", [None, np.ones((1, 24), np.float32)])
def test_a_reference_is_needed(reference):
    with pytest.raises(UserError, match=r"^reference: herding needs"):
        select(cases()["gaussian"][0], 5, "herding", reference=reference)
