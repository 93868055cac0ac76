import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from scipy.spatial.distance import cdist
from slow_references import hard_cases, split
from slow_references import nearest as slow
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.selection import nearest, neighbours
from entroloop.selection.exact import bounds, formats, intervals, search, sketch
from entroloop.selection.exact.distance import pair_distances

CASES = {name: x for name, x in hard_cases().items() if len(x) > 1}
FORMATS = [formats.BF16, formats.F32, formats.F64]
UINT8 = [name for name, x in CASES.items() if x.dtype == np.uint8]
exact_int8 = pytest.mark.skipif(
    not formats._int8_is_exact(torch.device("cpu")), reason="needs a processor with exact int8 products (VNNI or AMX)"
)


def _check(result, expected):
    distances, ids = result
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-12, atol=0)
    assert distances.dtype == np.float64
    assert ids.dtype == np.int64


@pytest.mark.parametrize("backend", ["torch", "faiss", "auto"])
@pytest.mark.parametrize("name", CASES)
def test_equals_a_direct_float64_search(name, backend):
    x = CASES[name]
    _check(nearest(x, x, 3, exclude_self=True, backend=backend), slow(x, x, 3, True))
    _check(nearest(x[::3], x, 1, backend=backend), slow(x[::3], x, 1, False))


@pytest.mark.parametrize("d", [1, 2, 8])
def test_the_tree_proposes_and_canonical_distances_decide(d):
    """Ties beyond all candidates of the tree: 600 copies of a point, and points on a lattice."""
    r = np.random.default_rng(d)
    x = np.concatenate([np.full((600, d), 0.3), r.integers(0, 3, size=(300, d)), r.normal(size=(300, d))])
    x = r.permutation(x).astype(np.float32)
    _check(nearest(x, x, 3, exclude_self=True), slow(x, x, 3, True))
    _check(nearest(x[::5], x, 2), slow(x[::5], x, 2, False))


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("name", ["clusters", "lattice, many ties", "far from the origin", "exact duplicates"])
def test_does_not_depend_on_formats_and_blocks(name, form, monkeypatch):
    x = CASES[name]
    expected = slow(x, x, 5, True)
    monkeypatch.setattr(neighbours, "shortest_format", lambda *rows: form)
    for columns, rows in ((16, 32), (7, 100)):
        monkeypatch.setattr(sketch, "TILE_COLUMNS", columns)
        monkeypatch.setattr(bounds, "TILE_ROWS", rows)
        monkeypatch.setattr(search, "SWEEP_ROWS", 3 * rows)
        monkeypatch.setattr(search, "_PART_ROWS", 3 * rows)
        monkeypatch.setattr(search, "_MERGE_PAIRS", 50)
        _check(nearest(x, x, 5, exclude_self=True, backend="torch"), expected)


@exact_int8
@pytest.mark.parametrize("name", UINT8)
def test_int8_products_are_the_squared_distances(name):
    x = torch.from_numpy(CASES[name])
    assert formats.shortest_format(x) is formats.INT8
    assert formats.shortest_format(x, x.float()) is not formats.INT8
    rows = sketch.Sketch.of(x, sketch.Frame.of(x), formats.INT8)
    product = sketch.product(rows, rows.turn())
    wide = CASES[name].astype(np.int64)
    np.testing.assert_array_equal(product.numpy(), ((wide[:, None] - wide[None]) ** 2).sum(2))


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("name", CASES)
def test_products_stay_within_their_certified_error(name, form):
    """Guards every margin: the interval of a product must hold the canonical distance of its pair."""
    x = torch.from_numpy(CASES[name])
    rows = sketch.Sketch.of(x, sketch.Frame.of(x), form)
    result = sketch.product(rows, rows.turn())
    i, j = (index.flatten() for index in torch.meshgrid(torch.arange(len(x)), torch.arange(len(x)), indexing="ij"))
    distance = pair_distances(x, i, x, j)
    errors, scale, flat = rows.errors[i] + rows.errors[j], rows.frame.scale, result.flatten()
    assert bool((flat <= intervals.cut(form, errors, distance, scale)).all())
    assert bool((intervals.reach(form, errors, flat, scale) >= distance).all())
    below = distance * (1 - 1e-9) - 1e-300
    assert not bool((flat < intervals.surely(form, errors, below, scale)).any())


def _on_rank(world, queries, bank, k, exclude_self):
    mine = queries[world.rank]
    return nearest(mine, mine if exclude_self else bank[world.rank], k, exclude_self=exclude_self, world=world)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("name", ["clusters", "lattice, many ties", "pixels 3072-d uint8", "exact duplicates"])
def test_any_number_of_ranks_uneven_and_empty(
    name,
    exclude_self,
    size,
):
    x = CASES[name]
    queries = x if exclude_self else x[::3]
    results = on_threads(size, _on_rank, split(queries, size), split(x, size), 4, exclude_self)
    joined = tuple(np.concatenate(part) for part in zip(*results, strict=True))
    _check(joined, slow(queries, x, 4, exclude_self))


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 5])
def test_pairs_are_shared_by_even_and_odd_numbers_of_ranks(size, monkeypatch):
    """Blocks travel half the ring. In an even ring two ranks hold each other's blocks at the last hop."""
    monkeypatch.setattr(search, "_BLOCK_BYTES", (0, 0))
    x = np.random.default_rng(size).integers(0, 30, size=(3000, 9)).astype(np.float32)
    parts = np.split(x, sorted([0, 1800, 2401, 2600][: size - 1]))  # one rank is empty, one holds two blocks
    results = on_threads(size, _on_rank, parts, parts, 3, True)
    joined = tuple(np.concatenate(part) for part in zip(*results, strict=True))
    _check(joined, slow(x, x, 3, True))


def test_on_two_processes():
    x = CASES["clusters"]
    results = on_ranks(2, _on_rank, split(x[::3], 2), split(x, 2), 4, False)
    joined = tuple(np.concatenate(part) for part in zip(*results, strict=True))
    _check(joined, slow(x[::3], x, 4, False))


def test_blocks_travel_where_a_rank_holds_more_than_one(monkeypatch):
    monkeypatch.setattr(search, "_BLOCK_BYTES", (0, 0))
    x = np.random.default_rng(0).normal(size=(2600, 3)).astype(np.float32)
    parts = split(x, 2)
    results = on_threads(2, _on_rank, parts, parts, 2, True)
    joined = tuple(np.concatenate(part) for part in zip(*results, strict=True))
    _check(joined, slow(x, x, 2, True))


def test_near_duplicates_far_from_the_origin_are_exact_where_faiss_is_not():
    r = np.random.default_rng(0)
    x = (r.normal(size=(500, 384)) * 2.75).astype(np.float32)  # norm about 54
    x[250:] = x[:250] + (r.normal(size=(250, 384)) * 0.02 / 384**0.5).astype(np.float32)
    distances, ids = nearest(x, x, exclude_self=True)
    expected, _ = slow(x, x, 1, True)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    assert (ids[:250, 0] == np.arange(250, 500)).all()


def test_memory_maps_are_read_in_place(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    _check(nearest(mapped, mapped, exclude_self=True), slow(x, x, 1, True))


def test_cosine_and_whitened_against_scipy():
    r = np.random.default_rng(0)
    bank = (r.normal(size=(300, 6)) @ r.normal(size=(6, 6)) + 3).astype(np.float32)
    queries = bank[:50] + 0.1
    wide = bank.astype(np.float64)
    inverse = np.linalg.inv(np.cov(wide.T))
    for metric, expected in (
        ("cosine", cdist(queries.astype(np.float64), wide, "cosine")),
        ("whitened", cdist(queries.astype(np.float64), wide, "mahalanobis", VI=inverse)),
    ):
        distances, ids = nearest(queries, bank, 2, metric=metric)
        np.testing.assert_array_equal(ids, np.argsort(expected, axis=1)[:, :2])
        np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :2], rtol=1e-6, atol=1e-12)


def test_whitened_with_fewer_rows_than_features_is_finite():
    x = np.random.default_rng(0).normal(size=(20, 50))
    distances, _ = nearest(x, x, exclude_self=True, metric="whitened")
    assert np.isfinite(distances).all()
    assert (distances > 0).all()


def _whitened(world, parts):
    from entroloop.selection.exact.rows import RankRows
    from entroloop.selection.exact.spaces import fit_metric

    own = RankRows.of(torch.from_numpy(parts[world.rank]), world)
    return fit_metric("whitened", own).rows(own.rows).numpy()


def test_whitened_rows_have_the_same_bits_at_any_number_of_ranks():
    x = (np.random.default_rng(0).normal(size=(200, 9)) * 30 + 5).astype(np.float32)
    whole = on_threads(1, _whitened, split(x, 1))[0]
    for size in (2, 3):
        np.testing.assert_array_equal(np.concatenate(on_threads(size, _whitened, split(x, size))), whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(1, 4), st.integers(0, 2**32), st.sampled_from([1, 3, 50]))
def test_small_integers_with_many_ties(n, d, seed, span):
    x = np.random.default_rng(seed).integers(0, span + 1, size=(n, d)).astype(np.float32)
    k = min(3, n - 1)
    _check(nearest(x, x, k, exclude_self=True), slow(x, x, k, True))


BANK = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BANK, BANK[:0]), "bank: holds no rows"),
        ((BANK, np.ones((4, 2), np.float32)), "queries have 3 features, the bank has 2"),
        ((BANK, BANK, 5), "k: must be between 1 and the 4 bank rows, is 5"),
        ((BANK, BANK, 0), "k: must be between 1"),
        ((BANK[0], BANK), r"queries: must have two dimensions \[N, D\], has shape \[3\]"),
        ((BANK.astype(np.int64), BANK), "queries: dtype must be float32, float64, float16 or uint8, is int64"),
        ((BANK, BANK * np.array([[1], [np.nan], [np.inf], [1]], np.float32)), "bank: row 1 holds NaN or infinity"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        nearest(*arguments)


def test_unknown_names_show_the_nearest():
    with pytest.raises(UserError, match="did you mean cosine"):
        nearest(BANK, BANK, metric="cosin")
    wrong: Any = "fais"
    with pytest.raises(UserError, match="did you mean faiss"):
        nearest(BANK, BANK, backend=wrong)
    with pytest.raises(UserError, match="k: must be between 1 and the 3 others, is 4"):
        nearest(BANK, BANK, 4, exclude_self=True)


def _bad_row(world):
    x = np.ones((3, 2), np.float32)
    if world.rank == 1:
        x[2] = np.nan
    try:
        nearest(x, x, world=world)
    except UserError as error:
        return str(error)
    return ""


def _bad_input(world, kind):
    x = np.ones((3, 2), np.float32)
    if world.rank == 1:
        x = {"zero": x * 0, "dtype": x.astype(np.int32), "rank": x[0]}[kind]
    try:
        nearest(x, x, world=world, metric="cosine")
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "message"),
    [("zero", "row 3 is zero"), ("dtype", "queries: dtype must be"), ("rank", "queries: must have two dimensions")],
)
def test_no_rank_waits_for_one_with_bad_input(kind, message):
    answers = on_threads(2, _bad_input, kind)
    assert answers[0] == answers[1]
    assert message in answers[0]


def test_every_rank_names_the_global_row():
    assert on_threads(2, _bad_row) == ["queries: row 5 holds NaN or infinity; every feature must be finite"] * 2


def _search_within(allowed, mapped, out):
    x = np.load(mapped, mmap_mode="r")
    search._BLOCK_BYTES = (1 << 22, 1 << 25)  # else a block may take more than is allowed here
    nearest(x[:64], x[:2048])  # libraries allocate their own once
    (kib,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    used = int(kib) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + allowed,) * 2)
    distances, ids = nearest(x[:64], x)
    try:
        np.array(x)
    except MemoryError:
        np.savez(out, distances=distances, ids=ids)


@pytest.mark.slow
def test_a_mapped_file_larger_than_the_memory_allowed(tmp_path):
    """The process may allocate 72 MiB; the file holds 128 MiB, and reading it whole fails."""
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (65_536, 512))
    r = np.random.default_rng(0)
    for start in range(0, len(mapped), 8192):
        mapped[start : start + 8192] = r.standard_normal((8192, 512), np.float32)
    mapped.flush()
    run = Forked(_search_within, 72 << 20, tmp_path / "x.npy", tmp_path / "out.npz").result()
    assert run.returncode == 0, run.stderr
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(found["ids"][:, 0], np.arange(64))
    assert (found["distances"] == 0).all()
