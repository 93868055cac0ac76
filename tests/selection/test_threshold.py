import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_references import hard_cases, split
from slow_references import threshold_decay as slow
from thread_world import on_threads

from entroloop.selection.exact import bounds, formats, frontier, sketch
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.rules import threshold as module
from entroloop.selection.rules.threshold import threshold_decay

CASES = hard_cases()
FORMATS = [formats.BF16, formats.F32, formats.F64]
UINT8 = [name for name, x in CASES.items() if x.dtype == np.uint8]
exact_int8 = pytest.mark.skipif(
    not formats._int8_is_exact(torch.device("cpu")), reason="needs a processor with exact int8 products (VNNI or AMX)"
)


def _start(x):
    """A threshold that rejects nearly everything in the first passes."""
    few = x[:40].astype(np.float64)
    return float(np.sqrt(((few[:, None] - few[None]) ** 2).sum(2)).max()) or 1.0


def _order(n):
    return np.random.default_rng(3).permutation(n)


def _run(x, size, order, threshold, decay):
    result = threshold_decay(RankRows.of(torch.from_numpy(x)), size, torch.from_numpy(order), threshold, decay)
    return tuple(t.numpy() for t in result)


def _check(result, expected):
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_sequential_form(name):
    x = CASES[name]
    for size in {max(1, len(x) // 2), len(x)}:
        arguments = (x, size, _order(len(x)), _start(x), 0.9)
        _check(_run(*arguments), slow(*arguments))


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("sizes", [(16, 32, 30, 50), (7, 11, 100, 100), (64, 64, 7, 20)])
@pytest.mark.parametrize("name", ["clusters", "lattice, many ties", "far from the origin", "one dimension"])
def test_does_not_depend_on_blocks_and_formats(name, sizes, form, monkeypatch):
    _shrink_and_check(name, sizes, form, monkeypatch)


@exact_int8
@pytest.mark.parametrize("sizes", [(16, 32, 30, 50), (7, 11, 100, 100)])
@pytest.mark.parametrize("name", UINT8)
def test_uint8_rows_by_exact_int8_products(name, sizes, monkeypatch):
    _shrink_and_check(name, sizes, formats.INT8, monkeypatch)


def _shrink_and_check(name, sizes, form, monkeypatch):
    columns, rows, block, chunk = sizes
    monkeypatch.setattr(sketch, "TILE_COLUMNS", columns)
    monkeypatch.setattr(bounds, "TILE_ROWS", rows)
    monkeypatch.setattr(bounds, "SWEEP_ROWS", 3 * rows)
    monkeypatch.setattr(frontier, "SWEEP_ROWS", 3 * rows)
    monkeypatch.setattr(frontier, "shortest_format", lambda *rows: form)
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    x = CASES[name]
    arguments = (x, len(x) // 2, _order(len(x)), _start(x), 0.8)
    _check(_run(*arguments), slow(*arguments))


def _on_rank(world, parts, size, order, threshold):
    before = world.traffic.exchanges
    passes: list[int] = []
    own = RankRows.of(torch.from_numpy(parts[world.rank]), world)
    ids, radii = threshold_decay(own, size, torch.from_numpy(order), threshold, 0.8, passes.append)
    return ids.numpy(), radii.numpy(), world.traffic.exchanges - before, len(passes)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_uneven_and_empty(name, size, monkeypatch):
    x = CASES[name]
    order, threshold, n = _order(len(x)), _start(x), max(1, len(x) // 2)
    expected = slow(x, n, order, threshold, 0.8)
    for small in (False, True):
        if small:
            monkeypatch.setattr(module, "BLOCK", 32)
            monkeypatch.setattr(module, "_CHUNK", 64)
        for result in on_threads(size, _on_rank, split(x, size), n, order, threshold):
            _check(result[:2], expected)


def test_one_exchange_a_block_and_two_a_pass():
    x = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    order = _order(3000)
    for _, _, exchanges, passes in on_threads(2, _on_rank, np.array_split(x, 2), 1500, order, _start(x)):
        most_blocks = passes + 2 * 3000 // module.BLOCK + passes
        assert exchanges <= 5 + most_blocks + 2 * passes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 60),
    st.integers(1, 3),
    st.sampled_from([1, 6, 1000]),
    st.sampled_from([0.3, 0.95]),
)
def test_properties(seed, n, d, span, decay):
    r = np.random.default_rng(seed)
    x = r.integers(0, span + 1, size=(n, d)).astype(np.float32)
    size, order = int(r.integers(1, n + 1)), r.permutation(n)
    expected = slow(x, size, order, float(span), decay)
    ids, radii = _run(x, size, order, float(span), decay)
    _check((ids, radii), expected)
    assert ids[0] == order[0], "the first candidate is always accepted"
    for j in range(1, size):  # each is further than the threshold it was taken at from all before
        before = np.sqrt(((x[ids[:j]].astype(np.float64) - x[ids[j]]) ** 2).sum(1)).min()
        assert before > expected[2][j]
        assert radii[j] == before
    np.testing.assert_array_equal(_run(x * 4, size, order, 4.0 * span, decay)[0], ids, "scaling with the threshold")
    place = r.permutation(n)  # row i becomes row place[i]
    moved = np.empty_like(x)
    moved[place] = x
    np.testing.assert_array_equal(_run(moved, size, place[order], float(span), decay)[0], place[ids])


def test_ends_with_fewer_distinct_points_than_asked_for():
    x = np.repeat(np.arange(5, dtype=np.float32)[:, None], 10, 0)
    ids, radii = _run(x, 30, np.arange(50), 100.0, 0.5)
    assert len(set(ids)) == 30
    assert (radii[5:] == 0).all()
    np.testing.assert_array_equal(ids[5:], [i for i in range(50) if i not in ids[:5]][:25])
