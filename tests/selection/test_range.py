"""Values at the ends of what number formats hold: exact results, or one line that names the row."""

import re

import numpy as np
import pytest
import slow_references
import torch
from slow_references import nearest as slow
from slow_references import split
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.selection import generalization_score, kl_entropy, nearest, neighbours, select
from entroloop.selection.catalogue import DISTANCES, STRATEGIES
from entroloop.selection.exact import formats, frontier
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.neighbours import Backend
from entroloop.selection.rules import problem
from entroloop.selection.rules.greedy import greedy
from entroloop.selection.rules.threshold import threshold_decay

BACKENDS: list[Backend] = ["torch", "faiss", "auto"]  # auto: a k-d tree for few features
WITHIN = r"every feature must be within ±1e\+150, because products of larger ones overflow$"


def _rows(d, n=300):
    return np.random.default_rng(d).normal(size=(n, d))


def _with(value, row=3):
    x = _rows(6, 40)
    x[row, 2] = value
    return x


def _check(result, expected):
    np.testing.assert_array_equal(result[1], expected[1])
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("d", [4, 16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_values_are_searched_exactly(backend, d):
    x = _rows(d)
    x *= 1e150 / np.abs(x).max()
    _check(nearest(x, x, 2, exclude_self=True, backend=backend), slow(x, x, 2, True))
    _check(nearest(x[:9], x, 2, backend=backend), slow(x[:9], x, 2, False))


@pytest.mark.parametrize("scale", [1e-154, 1e-160, 1e-161, 1e-162, 1e-165, 1e-310, 5e-324])
@pytest.mark.parametrize("d", [4, 16])
def test_differences_whose_squares_underflow_are_compared_as_the_canonical_distance_says(d, scale):
    x = _rows(d, 80) * scale
    for backend in BACKENDS:
        _check(nearest(x, x, 2, exclude_self=True, backend=backend), slow(x, x, 2, True))
        _check(nearest(x[:9], x[9:], 2, backend=backend), slow(x[:9], x[9:], 2, False))
    np.testing.assert_array_equal(select(x, 20, start=5).ids, slow_references.greedy(x, 20, 5)[0])
    assert set(select(x, 80, "threshold-decay").ids) == set(range(80))


@pytest.mark.parametrize(
    ("metric", "exponent"),
    [("cosine", -540), ("cosine", -1074), ("cosine", 490), ("whitened", -900), ("whitened", 490)],
)
def test_metrics_that_ignore_the_scale_give_small_rows_the_distances_of_others(metric, exponent):
    x = np.random.default_rng(0).integers(-9, 9, size=(60, 5)) + 0.0
    found, expected = (nearest(rows, rows, 2, exclude_self=True, metric=metric) for rows in (x * 2.0**exponent, x))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("metric", DISTANCES.built_in)
@pytest.mark.parametrize("strategy", STRATEGIES.built_in)
def test_strategies_take_the_largest_values_and_refuse_larger_ones(strategy, metric):
    x, given = _rows(6, 40), {"labels": np.arange(40) % 3, "metric": metric}
    x *= 1e150 / np.abs(x).max()
    assert np.isfinite(select(x, 9, strategy, reference=x[:20], **given).radii[1:]).all()
    with pytest.raises(UserError, match=rf"^features: row 3 holds 1e\+160; {WITHIN}"):
        select(_with(1e160), 9, strategy, **given)
    with pytest.raises(UserError, match=rf"^reference: row 3 holds -1\.1e\+154; {WITHIN}"):
        select(x, 9, strategy, reference=_with(-1.1e154), **given)


@pytest.mark.parametrize("value", [1.1e150, -1e154, 1.7e308])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_search_refuses_values_whose_squared_distances_may_overflow(backend, value):
    for queries, bank, name in ((_with(value), _rows(6), "queries"), (_rows(6), _with(value), "bank")):
        with pytest.raises(UserError, match=rf"^{name}: row 3 holds {re.escape(f'{value:.2g}')}; {WITHIN}"):
            nearest(queries, bank, backend=backend)


@pytest.mark.parametrize("call", [kl_entropy, lambda x: generalization_score(x, x)])
def test_entropies_refuse_them(call):
    with pytest.raises(UserError, match=rf"^queries: row 3 holds 1e\+160; {WITHIN}"):
        call(_with(1e160))
    with pytest.raises(UserError, match=r"^queries: row 3 holds NaN or infinity; every feature must be finite$"):
        call(_with(np.nan))


def exponential(bank):
    return lambda rows: rows.exp()


def _steep(world, parts, call):
    try:
        return call(parts[world.rank], world, f"{__name__}:exponential")
    except UserError as error:
        return str(error)


def _searched(x, world, metric):
    return nearest(x, x, world=world, metric=metric)


def _selected(x, world, metric):
    return select(x, 9, world=world, metric=metric)


@pytest.mark.parametrize(("value", "text"), [(400, "5.2e+173; every feature must be within"), (800, "NaN or infinity")])
@pytest.mark.parametrize(("call", "name"), [(_searched, "queries"), (_selected, "features")])
def test_every_rank_names_the_row_and_the_metric_that_maps_it_too_far(call, name, value, text):
    answers = on_threads(2, _steep, split(_with(value, 30), 2), call)
    assert answers[0] == answers[1]
    assert answers[0].startswith(f"{name}: metric {__name__}:exponential: row 30 holds {text}")


def test_whitening_by_a_bank_of_another_size_is_refused():
    with pytest.raises(UserError, match=r"^queries: metric whitened: row 0 holds .*e\+200; every feature must be"):
        nearest(_rows(6) * 1e100, _rows(6) * 1e-100, metric="whitened")
    with pytest.raises(UserError, match=r"^queries: metric whitened: row 0 holds NaN or infinity"):
        nearest(_rows(6) * 1e149, _rows(6) * 1e-160, metric="whitened")
    with pytest.raises(UserError, match=r"^reference: metric whitened: row 0 holds"):
        select(_rows(6) * 1e-100, 9, metric="whitened", reference=_rows(6) * 1e100)
    with pytest.raises(UserError, match=r"^features: whitened by the reference: row 0 .* within ±1e\+70,"):
        select(_rows(6) * 1e80, 9, "covariance-matching", reference=_rows(6))


@pytest.mark.parametrize(
    ("form", "dtype", "scale", "far"),
    [
        (formats.BF16, np.float32, 1, 1e25),
        (formats.F32, np.float32, 1e-20, 3e38),
        (formats.F64, np.float64, 1, 1e40),
        (formats.BF16, np.float64, 1e-140, 1e149),
    ],
)
def test_a_row_far_from_those_that_a_frame_is_fitted_to_spoils_nothing(form, dtype, scale, far, monkeypatch):
    """Products with such a row overflowed in every format: wrong neighbours, wrong picks, or a traceback."""
    for module in (frontier, neighbours, problem):
        monkeypatch.setattr(module, "shortest_format", lambda *rows: form)
    x = (_rows(10, 2100) * scale).astype(dtype)
    x[1, 4] = far  # frames are fitted to every second row
    for backend in ("torch", "faiss"):
        _check(nearest(x, x, 2, exclude_self=True, backend=backend), slow(x, x, 2, True))
        _check(nearest(x[:9], x[9:], 2, backend=backend), slow(x[:9], x[9:], 2, False))
        _check(nearest(x[9:30], x, 2, backend=backend), slow(x[9:30], x, 2, False))
    rows, order, level = RankRows.of(torch.from_numpy(x)), np.random.default_rng(0).permutation(len(x)), 4.0 * scale
    filtered = threshold_decay(rows, 40, torch.from_numpy(order), level, 0.9)
    for found, expected in (
        (greedy(rows, 40, 5), slow_references.greedy(x, 40, 5)),
        (filtered, slow_references.threshold_decay(x, 40, order, level, 0.9)),
    ):
        _check([part.numpy() for part in found][::-1], expected[1::-1])
