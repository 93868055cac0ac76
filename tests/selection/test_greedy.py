import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from slow_references import greedy as slow
from slow_references import hard_cases, split
from thread_world import on_threads

from entroloop.selection import select
from entroloop.selection.exact import bounds, formats, frontier, sketch
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.rules import greedy as module
from entroloop.selection.rules.greedy import greedy

CASES = hard_cases()
FORMATS = [formats.BF16, formats.F32, formats.F64]
UINT8 = [name for name, x in CASES.items() if x.dtype == np.uint8]
exact_int8 = pytest.mark.skipif(
    not formats._int8_is_exact(torch.device("cpu")), reason="needs a processor with exact int8 products (VNNI or AMX)"
)


def _run(x, size, start):
    return tuple(t.numpy() for t in greedy(RankRows.of(torch.from_numpy(x)), size, start))


def _check(result, expected):
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_form(name):
    x = CASES[name]
    for size in {max(1, len(x) // 2), len(x)}:
        _check(_run(x, size, len(x) // 3), slow(x, size, len(x) // 3))


def _shrink(monkeypatch, sizes, form):
    columns, rows, active, block = sizes
    monkeypatch.setattr(sketch, "TILE_COLUMNS", columns)
    monkeypatch.setattr(bounds, "TILE_ROWS", rows)
    monkeypatch.setattr(bounds, "SWEEP_ROWS", 3 * rows)
    monkeypatch.setattr(frontier, "SWEEP_ROWS", 3 * rows)
    monkeypatch.setattr(frontier, "shortest_format", lambda *rows: form)
    monkeypatch.setattr(module, "_ACTIVE", active)
    monkeypatch.setattr(module, "SMALLEST_BLOCK", block)
    monkeypatch.setattr(module, "LARGEST_BLOCK", 4 * block)


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("sizes", [(16, 32, 30, 4), (7, 11, 100, 8), (64, 64, 300, 64)])
@pytest.mark.parametrize("name", ["clusters", "lattice, many ties", "far from the origin", "exact duplicates"])
def test_does_not_depend_on_blocks_and_formats(name, sizes, form, monkeypatch):
    x = CASES[name]
    _shrink(monkeypatch, sizes, form)
    _check(_run(x, len(x) // 2, 5), slow(x, len(x) // 2, 5))


@exact_int8
@pytest.mark.parametrize("sizes", [(16, 32, 30, 4), (7, 11, 100, 8)])
@pytest.mark.parametrize("name", UINT8)
def test_uint8_rows_by_exact_int8_products(name, sizes, monkeypatch):
    x = CASES[name]
    _shrink(monkeypatch, sizes, formats.INT8)
    _check(_run(x, len(x) // 2, 5), slow(x, len(x) // 2, 5))


def _on_rank(world, parts, size, start):
    before = world.traffic.exchanges
    blocks_run: list[int] = []
    own = RankRows.of(torch.from_numpy(parts[world.rank]), world)
    ids, radii = greedy(own, size, start, blocks_run.append)
    return ids.numpy(), radii.numpy(), world.traffic.exchanges - before, len(blocks_run)


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", ["clusters", "lattice, many ties", "exact duplicates"])
def test_ranks_share_the_distances_inside_a_block(name, size, monkeypatch):
    x = CASES[name]
    _shrink(monkeypatch, (16, 32, 200, 128), formats.F32)
    expected = slow(x, len(x) // 2, 5)
    for ids, radii, exchanges, blocks_run in on_threads(size, _on_rank, np.array_split(x, size), len(x) // 2, 5):
        _check((ids, radii), expected)
        assert exchanges <= 8 + 5 * blocks_run


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_uneven_and_empty(name, size, monkeypatch):
    x = CASES[name]
    expected = slow(x, max(1, len(x) // 2), len(x) // 3)
    for small in (False, True):
        if small:
            monkeypatch.setattr(module, "_ACTIVE", 64)
            monkeypatch.setattr(module, "SMALLEST_BLOCK", 8)
            monkeypatch.setattr(module, "LARGEST_BLOCK", 64)
        for result in on_threads(size, _on_rank, split(x, size), len(expected[0]), len(x) // 3):
            _check(result[:2], expected)


def test_on_two_processes():
    x = CASES["clusters"]
    for result in on_ranks(2, _on_rank, split(x, 2), len(x) // 2, 5):
        _check(result[:2], slow(x, len(x) // 2, 5))


def test_one_exchange_a_block_not_one_a_pick():
    x = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    for ids, _, exchanges, blocks_run in on_threads(2, _on_rank, np.array_split(x, 2), 1500, 0):
        # numbering, centre and scale, the first pick; then one a block, and two where more rows are woken
        assert exchanges <= 4 + 3 * blocks_run
        assert exchanges < len(ids) / 8


@pytest.mark.slow
def test_at_a_size_where_rows_sleep_and_wake():
    r = np.random.default_rng(0)
    centres = r.normal(size=(40, 16)) * 2
    x = (centres[r.integers(40, size=20_000)] + r.normal(size=(20_000, 16))).astype(np.float32)
    _check(_run(x, 2000, 7), slow(x, 2000, 7))


integers = st.integers(0, 2**32)


def _points(seed, n, d, span):
    return np.random.default_rng(seed).integers(0, span + 1, size=(n, d)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(integers, st.integers(1, 80), st.integers(1, 4), st.sampled_from([1, 5, 1000]))
def test_properties(seed, n, d, span):
    x = _points(seed, n, d, span)
    ids, radii = _run(x, n, seed % n)
    assert sorted(ids) == list(range(n))
    assert (np.diff(radii[1:]) <= 0).all(), "radii never rise"
    distances = np.sqrt(((x[:, None].astype(np.float64) - x[None]) ** 2).sum(2))
    for j in range(1, n):  # every pick is an argmax
        left = distances[ids[j:]][:, ids[:j]].min(1)
        assert left[0] == left.max() == radii[j]
    half = _run(x, (n + 1) // 2, seed % n)
    np.testing.assert_array_equal(half[0], ids[: len(half[0])], "subsets nest")
    np.testing.assert_array_equal(_run(x * 8, n, seed % n)[0], ids, "scaling leaves choices")


@settings(max_examples=25, deadline=None)
@given(integers, st.integers(2, 60))
def test_permuted_rows_give_permuted_ids(seed, n):
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, 3))
    order = r.permutation(n)
    ids, radii = _run(x, n // 2, int(order[0]))
    other, other_radii = _run(x[order], n // 2, 0)
    np.testing.assert_array_equal(order[other], ids)
    np.testing.assert_array_equal(other_radii, radii)


def test_two_levels_choose_nearly_as_well_and_know_their_cover():
    x = CASES["clusters"]
    exact = select(x, 75, seed=3)
    for parts in (1, 4):
        chosen = select(x, 75, seed=3, parts=parts)
        assert len(set(chosen.ids)) == 75
        gaps = np.stack([np.sqrt(((x - x[i]) ** 2).sum(1)) for i in chosen.ids]).min(0)
        assert gaps.max() <= chosen.info["cover"] * (1 + 1e-6)
        assert chosen.radii[1:].min() > 0.8 * exact.radii[1:].min()


def _two_levels(world, parts):
    return select(parts[world.rank], 100, seed=1, world=world, parts=1).ids


def test_two_levels_agree_between_ranks():
    first, second = on_threads(2, _two_levels, split(CASES["clusters"], 2))
    np.testing.assert_array_equal(first, second)
    assert len(set(first)) == 100
