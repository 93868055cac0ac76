from importlib.metadata import EntryPoint

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits
from slow_references import greedy as slow_greedy
from slow_references import nearest as slow_nearest
from slow_references import split
from thread_world import on_threads

from entroloop.data import registry
from entroloop.data.errors import UserError
from entroloop.selection import select
from entroloop.selection.catalogue import STRATEGIES
from entroloop.selection.rules.problem import quotas
from entroloop.selection.selection_config import SelectionConfig

DIGITS = load_digits()
X = DIGITS.data[:500].astype(np.float32)
LABELS = DIGITS.target[:500]
ALL = [
    "random",
    "random-class-balanced",
    "greedy",
    "threshold-decay",
    "adaptive-threshold",
    "entropy-matching",
    "covariance-matching",
    "herding",
    "voronoi",
]


def _earlier(x, ids):
    distances = [np.inf]
    for j in range(1, len(ids)):
        distances.append(np.sqrt(((x[ids[:j]].astype(np.float64) - x[ids[j]]) ** 2).sum(1)).min())
    return np.array(distances)


@pytest.mark.parametrize("name", ALL)
def test_every_strategy_gives_distinct_ids_true_radii_and_repeats(name):
    given = {"labels": LABELS, "reference": DIGITS.data[500:700].astype(np.float32)}
    chosen = select(X, 120, name, seed=3, **given)
    assert chosen.ids.dtype == np.int64
    assert chosen.radii.dtype == np.float64
    assert len(set(chosen.ids)) == 120
    np.testing.assert_allclose(chosen.radii, _earlier(X, chosen.ids), rtol=1e-12)
    again, other = select(X, 120, name, seed=3, **given), select(X, 120, name, seed=4, **given)
    np.testing.assert_array_equal(chosen.ids, again.ids)
    assert set(other.ids) != set(chosen.ids)


def _on_rank(world, parts, labels, name, extra):
    return select(
        parts[world.rank],
        60,
        name,
        seed=1,
        world=world,
        labels=labels[world.rank],
        reference=parts[world.rank],
        reference_labels=labels[world.rank],
        **extra,
    )


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("random-class-balanced", {}),
        ("adaptive-threshold", {"trim": 0.1}),
        ("entropy-matching", {}),
        ("covariance-matching", {}),
        ("herding", {"metric": "cosine", "trim": 0.1}),
        ("voronoi", {"per_class": True, "metric": "whitened"}),
        ("greedy", {"per_class": True, "trim": 0.05}),
        ("greedy", {"metric": "cosine"}),
        ("threshold-decay", {"metric": "whitened"}),
    ],
)
def test_ids_do_not_depend_on_the_number_of_ranks(name, extra, size):
    x, labels = X[:200] + np.float32(1), LABELS[:200]
    whole = select(x, 60, name, seed=1, labels=labels, reference=x, reference_labels=labels, **extra)
    for result in on_threads(size, _on_rank, split(x, size), split(labels, size), name, extra):
        np.testing.assert_array_equal(result.ids, whole.ids)
        np.testing.assert_array_equal(result.radii, whole.radii)


def test_stratified_random_takes_equal_numbers_from_each_generation():
    generations = np.repeat([0, 1, 2], [20, 300, 180])
    chosen = select(X, 150, "random", stratified=True, generations=generations)
    assert np.bincount(generations[chosen.ids]).tolist() == [20, 65, 65]
    assert sorted(quotas([20, 300, 180], 150)) == [20, 65, 65]


def test_classes_are_balanced():
    for chosen in (
        select(X, 100, "random-class-balanced", labels=LABELS),
        select(X, 100, "greedy", labels=LABELS, per_class=True),
    ):
        assert np.bincount(LABELS[chosen.ids]).tolist() == [10] * 10


def test_per_class_runs_the_strategy_within_each_class():
    chosen = select(X, 50, "greedy", labels=LABELS, per_class=True)
    for label in range(10):
        ids = [i for i in chosen.ids if LABELS[i] == label]
        rows = np.flatnonzero(label == LABELS)
        expected, _ = slow_greedy(X[rows], 5, int(np.flatnonzero(rows == ids[0])[0]))
        np.testing.assert_array_equal(ids, rows[expected])


@pytest.mark.parametrize("name", ["herding", "voronoi", "entropy-matching", "covariance-matching"])
def test_per_class_matches_each_class_to_its_own_reference(name):
    real, known = DIGITS.data[500:800].astype(np.float32), DIGITS.target[500:800].copy()
    known[np.flatnonzero(known == 0)[1:]] = -1  # a single row of class 0: then the whole reference
    chosen = select(X, 60, name, labels=LABELS, reference=real, reference_labels=known, per_class=True)
    for label in (0, 3):
        rows = np.flatnonzero(label == LABELS)
        alone = select(X[rows], 6, name, reference=real if label == 0 else real[known == label])
        np.testing.assert_array_equal([i for i in chosen.ids if LABELS[i] == label], rows[alone.ids])


def test_trim_drops_the_points_without_near_neighbours():
    k = 3
    far = slow_nearest(X, X, k, True)[0][:, -1]
    dropped = set(np.argsort(far, kind="stable")[-50:])
    chosen = select(X, 450, "random", trim=0.1, trim_k=k)
    assert set(range(500)) - set(chosen.ids) == dropped
    assert chosen.info["trimmed"] == 50


def test_greedy_takes_a_given_start():
    assert select(X, 5, "greedy", start=17).ids[0] == 17


def test_third_parties_add_strategies_by_entry_point(monkeypatch):
    point = EntryPoint("first-rows", f"{__name__}:first_rows", "entroloop.strategies")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "entroloop.strategies" else [])
    assert "first-rows" in STRATEGIES.names
    assert select(X, 4, "first-rows", after=2).ids.tolist() == [2, 3, 4, 5]


def first_rows(problem, *, after=0):
    import torch

    return problem.selection(torch.arange(after, after + problem.size))


@pytest.mark.parametrize(
    ("size", "name", "options", "message"),
    [
        (0, "greedy", {}, "size: must be an integer between 1 and the 500 rows there are, is 0"),
        (-3, "greedy", {}, "size: .* is -3"),
        (501, "greedy", {}, "size: .* is 501"),
        (5, "gredy", {}, r"strategy 'gredy' does not exist: did you mean greedy\?"),
        (5, "threshold-decay", {"treshold": 1}, "option of strategy threshold-decay .*did you mean threshold"),
        (5, "threshold-decay", {"decay": 1.0}, "decay: must be below 1, is 1.0"),
        (5, "threshold-decay", {"threshold": -1.0}, "threshold: must be at least 0, is -1.0"),
        (5, "adaptive-threshold", {"strength": 2}, "strength: must be at most 1, is 2"),
        (5, "greedy", {"metric": "euclid"}, r"metric 'euclid' does not exist: did you mean euclidean\?"),
        (5, "greedy", {"start": 500}, "start: must be an id below the number of rows, 500, is 500"),
        (5, "greedy", {"trim": 0.995}, "trim: must be a share that leaves at least 5 of 500 rows, is 0.995"),
        (5, "greedy", {"per_class": True}, "per_class: needs labels"),
        (
            5,
            "herding",
            {"per_class": True, "labels": LABELS, "reference": X[:9], "reference_labels": LABELS[:8]},
            "reference_labels: must be 9 integers, one per row",
        ),
        (5, "greedy", {"labels": [1, 2]}, "labels: must be 500 integers"),
        (5, "greedy", {"seed": -1}, "seed: must be an integer of at least 0"),
        (5, "random", {"stratified": True}, "generations: stratified random selection needs"),
        (5, "greedy", {"reference": np.ones((2, 3))}, "reference: must hold rows of 64 features"),
    ],
)
def test_bad_input_is_named(size, name, options, message):
    with pytest.raises(UserError, match=message):
        select(X, size, name, **options)


def test_configuration_names_what_is_wrong():
    assert SelectionConfig().strategy == "herding"
    with pytest.raises(ValidationError, match="did you mean adaptive-threshold"):
        SelectionConfig(strategy="adaptive")
    with pytest.raises(ValidationError, match="did you mean cosine"):
        SelectionConfig(metric="cosin")
    with pytest.raises(ValidationError, match=r"[Ee]xtra"):
        SelectionConfig.model_validate({"size": 3})
