"""Selection on 2, 16 and 64 ranks gives the ids of one rank in few exchanges, in any mix of number formats."""

import threading

import numpy as np
import pytest
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.selection import nearest, neighbours, select
from entroloop.selection.exact import formats, frontier
from entroloop.selection.rules import adaptive, matching, problem

ROWS = {"greedy": 4096, "threshold-decay": 4096, "nearest": 1024}
MOST = {  # exchanges
    "greedy": {2: 22, 16: 26, 64: 30},
    "threshold-decay": {2: 91, 16: 91, 64: 91},
    "nearest": {2: 7, 16: 21, 64: 69},  # rows pass by half of the ranks, and their lists return
}


def clusters(n, d, seed=0, scale=1.0):
    r = np.random.default_rng(seed)
    return (2 * r.normal(size=(64, d))[r.integers(64, size=n)] + scale * r.normal(size=(n, d))).astype(np.float32)


def _nearest(x, **options):
    return nearest(x, x, 2, exclude_self=True, backend="torch", **options)[1]


def _on_rank(world, x, name):
    mine = np.array_split(x, world.size)[world.rank]
    found = _nearest(mine, world=world) if name == "nearest" else select(mine, 256, name, world=world).ids
    return found, world.traffic.exchanges


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
def test_the_ids_of_one_rank_in_few_exchanges(name):
    x = clusters(ROWS[name], 8)
    whole = _nearest(x) if name == "nearest" else select(x, 256, name).ids
    for size, most in MOST[name].items():
        results = on_threads(size, _on_rank, x, name)
        parts = [ids for ids, _ in results]
        np.testing.assert_array_equal(np.concatenate(parts) if name == "nearest" else parts[-1], whole)
        assert max(exchanges for _, exchanges in results) <= most, size


def _mixed(world, x, size, name, choice, formats_of_ranks):
    choice.form = formats_of_ranks[world.rank]
    mine = np.array_split(x, world.size)[world.rank]
    if name == "nearest":
        return _nearest(mine, world=world)
    return select(mine, size, name, world=world, reference=mine).ids


@pytest.mark.parametrize(
    "name",
    [
        "greedy",
        "threshold-decay",
        "adaptive-threshold",
        "entropy-matching",
        "covariance-matching",
        "voronoi",
        "nearest",
    ],
)
def test_ranks_with_different_formats_stay_in_step(name, monkeypatch):
    choice = threading.local()
    choice.form = formats.F32
    for module in (frontier, problem, neighbours):
        monkeypatch.setattr(module, "shortest_format", lambda *rows: choice.form)
    r = np.random.default_rng(0)  # copies: many distances that bfloat16 cannot tell apart
    originals = 2 * r.normal(size=(32, 16))
    copies = originals[r.integers(32, size=2048)] + r.normal(size=(2048, 16)) * 0.1 * r.random((2048, 1))
    x = copies.astype(np.float32)[: None if name == "greedy" else 500]
    whole = _nearest(x) if name == "nearest" else select(x, len(x) // 2, name, reference=x).ids
    results = on_threads(2, _mixed, x, len(x) // 2, name, choice, (formats.BF16, formats.F32))
    for ids in [np.concatenate(results)] if name == "nearest" else results:
        np.testing.assert_array_equal(ids, whole)


def _other_arithmetic(world, x, name):
    """Ranks other than 0 compute what is not canonical a little differently, as another processor would."""
    mine = np.array_split(x, world.size)[world.rank]
    try:
        return select(mine, 60, name, world=world, reference=mine).ids
    except AssertionError as error:
        return str(error)


@pytest.mark.parametrize("name", ["entropy-matching", "covariance-matching"])
def test_ranks_that_round_sums_differently_stay_in_step(name, monkeypatch):
    x = clusters(150, 6)
    whole = select(x, 60, name, reference=x).ids
    ranks = threading.local()
    herded, quantiles = matching._herded, adaptive._log_quantiles

    def inexact(world, *args):
        ranks.factor = 1 + 0.3 * world.rank
        return _other_arithmetic(world, *args)

    monkeypatch.setattr(matching, "_herded", lambda u, *rest: herded(u * ranks.factor, *rest))
    monkeypatch.setattr(adaptive, "_log_quantiles", lambda *args: quantiles(*args) * ranks.factor)
    for ids in on_threads(2, inexact, x, name):
        np.testing.assert_array_equal(ids, whole)


def _dtypes(world, dtypes):
    x = np.ones((0 if dtypes[world.rank] == "empty" else 3, 2), dtypes[world.rank].replace("empty", "float64"))
    try:
        return nearest(x, x, world=world)[1].tolist()
    except UserError as error:
        return str(error)


def test_ranks_must_agree_in_their_dtype_but_one_without_rows_need_not():
    answers = on_threads(2, _dtypes, ("float32", "uint8"))
    assert answers == ["queries: ranks hold rows of float32 and uint8: every rank must pass the same dtype"] * 2
    assert on_threads(2, _dtypes, ("empty", "uint8")) == [[], [[0], [0], [0]]]


def _whitened(world, x):
    try:
        select(x, 2, world=world, metric="whitened")
    except UserError as error:
        return str(error)
    return ""


def test_no_rank_waits_for_one_that_cannot_whiten():
    answers = on_threads(2, _whitened, np.ones((5, 3), np.float32))
    assert answers == ["metric whitened: all bank rows are equal, so that no direction has a scale"] * 2
