"""Selection and measures on a CUDA device, pretended or real, give the results of the CPU and of slow references."""

import sys

import numpy as np
import pytest
import slow_references
import torch

from entroloop.data import memory
from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets
from entroloop.selection import catalogue, generalization_score, kl_entropy, nearest, select
from entroloop.selection.exact import canary
from entroloop.selection.exact.intervals import InexactProductError
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.rules.greedy import greedy
from entroloop.selection.rules.threshold import threshold_decay

pytestmark = pytest.mark.gpu
PRETENDED = "pretended" in sys.modules
CPU, GPU = World(), World(device=torch.device("cuda", 0))
N = 400


def _rows():
    r = np.random.default_rng(0)
    x = r.standard_normal((N, 24)).astype(np.float32)
    x[7], x[9] = x[3], x[4] + np.float32(1e-3)
    return x


ROWS = _rows()
BYTES = np.random.default_rng(1).integers(0, 256, (N, 32), dtype=np.uint8)
OPTIONS = {
    name: {"reference": ROWS[:100]} for name in ("entropy-matching", "covariance-matching", "herding", "voronoi")
}
LABELS, GENERATIONS = np.arange(N) % 5, np.arange(N) % 3 - 1


CASES = slow_references.hard_cases()


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name, x in CASES.items() if len(x) > 1])
def test_neighbours_equal_a_direct_search(name):
    x = CASES[name]
    found = nearest(x, x, 3, exclude_self=True, backend="torch", world=GPU)
    same(found[::-1], slow_references.nearest(x, x, 3, True)[::-1])


@pytest.mark.parametrize("name", CASES)
def test_greedy_equals_the_published_form(name):
    x = CASES[name]
    for size in {max(1, len(x) // 2), len(x)}:
        found = greedy(RankRows.of(torch.from_numpy(x).to(GPU.device), GPU), size, len(x) // 3)
        same([rows.cpu().numpy() for rows in found], slow_references.greedy(x, size, len(x) // 3))


@pytest.mark.parametrize("name", CASES)
def test_threshold_decay_equals_the_published_form(name):
    x = CASES[name]
    order, size = np.random.default_rng(3).permutation(len(x)), max(1, len(x) // 2)
    few = x[:40].astype(np.float64)
    level = float(np.sqrt(((few[:, None] - few[None]) ** 2).sum(2)).max()) or 1.0
    rows = RankRows.of(torch.from_numpy(x).to(GPU.device), GPU)
    found = threshold_decay(rows, size, torch.from_numpy(order), level, 0.9)
    same([rows.cpu().numpy() for rows in found], slow_references.threshold_decay(x, size, order, level, 0.9))


@pytest.mark.parametrize("metric", catalogue.DISTANCES.built_in)
@pytest.mark.parametrize("k", [1, 4])
def test_neighbours(metric, k):
    on_cpu, on_gpu = (nearest(ROWS, ROWS, k, exclude_self=True, metric=metric, world=w) for w in (CPU, GPU))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        np.testing.assert_array_equal(one, other)


def test_neighbours_of_bytes():
    on_cpu, on_gpu = (nearest(BYTES, BYTES, 2, exclude_self=True, world=w) for w in (CPU, GPU))
    np.testing.assert_array_equal(on_cpu, on_gpu)


@pytest.mark.parametrize("strategy", catalogue.STRATEGIES.built_in)
def test_strategies(strategy):
    options = OPTIONS.get(strategy, {})
    on_cpu, on_gpu = (
        select(ROWS, N // 2, strategy, world=w, labels=LABELS, generations=GENERATIONS, **options) for w in (CPU, GPU)
    )
    np.testing.assert_array_equal(on_cpu.ids, on_gpu.ids)
    np.testing.assert_array_equal(on_cpu.radii, on_gpu.radii)


@pytest.mark.parametrize("options", [{"parts": 3}, {"per_class": True}, {"trim": 0.1}, {"metric": "whitened"}])
def test_greedy_with_options(options):
    on_cpu, on_gpu = (select(ROWS, N // 2, world=w, labels=LABELS, **options).ids for w in (CPU, GPU))
    np.testing.assert_array_equal(on_cpu, on_gpu)


def test_entropy():
    on_cpu, on_gpu = (kl_entropy(ROWS, 3, world=w) for w in (CPU, GPU))
    assert (on_cpu.nats, on_cpu.floored) == (on_gpu.nats, on_gpu.floored)


def on_device(options):
    return {k: torch.from_numpy(v).to(GPU.device) if isinstance(v, np.ndarray) else v for k, v in options.items()}


@pytest.mark.parametrize("strategy", catalogue.STRATEGIES.built_in)
def test_tensors_on_the_device_need_no_world(strategy):
    options = {"features": ROWS, "labels": LABELS, "generations": GENERATIONS, **OPTIONS.get(strategy, {})}
    on_cpu, on_gpu = (select(size=50, strategy=strategy, **given) for given in (options, on_device(options)))
    np.testing.assert_array_equal(on_cpu.ids, on_gpu.ids)
    np.testing.assert_array_equal(on_cpu.radii, on_gpu.radii)


def inexact(rows, form):
    raise InexactProductError("as if another library switched TF32 on")


WITHOUT_A_WORLD = {
    "nearest": lambda x: nearest(x, x),
    "select": lambda x: select(x, 9, "random"),
    "entropy": kl_entropy,
    "generalization score": lambda x: generalization_score(x, x),
}


@pytest.mark.parametrize("call", WITHOUT_A_WORLD)
def test_the_device_of_the_rows_is_proved_also_without_a_world(call, monkeypatch):
    canary.prove.cache_clear()
    monkeypatch.setattr(canary, "check_products", inexact)
    WITHOUT_A_WORLD[call](torch.from_numpy(ROWS))
    with pytest.raises(UserError, match=r"^cuda:0: .* products are less exact than torch's settings promise"):
        WITHOUT_A_WORLD[call](torch.from_numpy(ROWS).to(GPU.device))


def test_rows_on_two_devices_are_refused():
    rows = torch.from_numpy(ROWS).to(GPU.device)
    with pytest.raises(UserError, match=r"^bank: on cpu, but queries are on cuda:0: pass both on one device"):
        nearest(rows, ROWS)
    with pytest.raises(UserError, match=r"^reference: on cpu, but features are on cuda:0: pass both on one device"):
        select(rows, 9, "voronoi", reference=ROWS)


def test_measures():
    third = N // 3
    parts = [ROWS[i * third : (i + 1) * third] for i in range(3)]
    mirrored = parts[1] + np.float32(0.01)
    on_cpu, on_gpu = (measure(Sets(parts[0], parts[1], parts[2], mirrored, world=w)).values for w in (CPU, GPU))
    assert on_cpu.keys() == on_gpu.keys()
    for name, value in on_cpu.items():
        assert on_gpu[name] == pytest.approx(value, rel=1e-9 if PRETENDED else 1e-6, nan_ok=True), name


def test_the_device_refuses_tensors_of_the_cpu():
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError):
        x + torch.ones(3)
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()


LAUNCHES = {
    "greedy": (12_139 // 20, lambda rows: select(rows, 1500, world=GPU)),
    "threshold-decay": (900, lambda rows: select(rows, 1500, "threshold-decay", world=GPU)),
    "nearest": (126, lambda rows: nearest(rows, rows, exclude_self=True, world=GPU)),
}


@pytest.mark.parametrize(
    ("call", "width"),
    [("greedy", 32), pytest.param("greedy", 384, marks=pytest.mark.long), ("threshold-decay", 384), ("nearest", 384)],
)
def test_calls_take_a_twentieth_of_the_launches_that_sizes_for_a_cpu_took(call, width, monkeypatch, watch):
    """Those sizes were products and chunks that fit a core's cache."""
    monkeypatch.setattr(memory, "total_bytes", lambda device: 32 << 30)
    rows = np.random.default_rng(0).standard_normal((3000, width)).astype(np.float32)
    select(rows[:9], 3, world=GPU)  # the first call on a device proves its products
    most, run = LAUNCHES[call]
    with watch() as seen:
        run(rows)
    assert most // 3 < seen.launches.total() <= most
