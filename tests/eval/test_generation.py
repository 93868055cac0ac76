"""The measures of a generation: known cases, independent values, rows as JSON, and the same at 1, 2 and 3 ranks."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import digamma, gammaln
from sklearn.neighbors import NearestNeighbors
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.data.store.shards import REAL, Provenance
from entroloop.eval.evaluation_config import EvaluationConfig
from entroloop.eval.measures.generation import (
    FeatureSets,
    baseline_row,
    evaluate_generation,
)
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.row import Row
from entroloop.eval.measures.sets import Sets
from entroloop.selection import kl_entropy

ALL = {
    "frechet_distance", "kernel_distance", "vendi_score", "covariance_trace", "effective_rank", "generalization_score",
    "generalization_score_ratio", "memorized_fraction", "memorized_calibrated", "authenticity", "precision", "recall",
    "density", "coverage", "training_entropy", "generated_entropy", "spread_gap", "ct_score",
}  # fmt: skip


def cloud(n, d=8, seed=0, offset=0.0):
    return np.random.default_rng(seed).normal(offset, 1, (n, d)).astype(np.float32)


@pytest.fixture(scope="module")
def sets():
    return cloud(150, seed=1, offset=0.2), cloud(120, seed=2), cloud(130, seed=3)


def distances(x, y, k):
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(y.astype(float)).kneighbors(x.astype(float))


def test_all_measures_are_there_and_agree_with_scikit_learn(sets):
    generated, training, reference = sets
    found = measure(Sets(generated, training, reference)).values
    assert set(found) == ALL
    to_training, ids = distances(generated, training, 2)
    among_training = distances(training, training, 2)[0][:, 1]
    heldout = distances(reference, training, 1)[0][:, 0]
    limit = np.sort(heldout)[int(0.01 * (len(heldout) - 1))]
    n, d = training.shape
    entropy = (
        digamma(n) - digamma(1) + d / 2 * math.log(math.pi) - gammaln(d / 2 + 1) + d * np.log(among_training).mean()
    )
    expected = {
        "generalization_score": to_training[:, 0].mean(),
        "generalization_score_ratio": to_training[:, 0].mean() / heldout.mean(),
        "memorized_fraction": (to_training[:, 0] / to_training[:, 1] < 1 / 3).mean(),
        "memorized_calibrated": (to_training[:, 0] <= limit).mean(),
        "authenticity": 100 * (among_training[ids[:, 0]] < to_training[:, 0]).mean(),
        "training_entropy": entropy,
        "covariance_trace": np.cov(generated.astype(float), rowvar=False).trace(),
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)


def test_manifold_measures_agree_with_prdc_against_the_reference(sets, capsys):
    prdc = pytest.importorskip("prdc")
    generated, training, reference = sets
    found = measure(Sets(generated, training, reference)).values
    k3, k5 = (prdc.compute_prdc(reference.astype(float), generated.astype(float), k) for k in (3, 5))
    expected = {**{m: k3[m] for m in ("precision", "recall")}, **{m: k5[m] for m in ("density", "coverage")}}
    assert {m: found[m] for m in expected} == pytest.approx(expected, abs=1e-12)


def test_a_copy_of_the_training_set_is_caught():
    training, reference = cloud(200), cloud(200, seed=1)
    found = measure(Sets(training.copy(), training, reference)).values
    assert found["generalization_score"] == 0
    assert found["generalization_score_ratio"] == 0
    assert found["memorized_fraction"] == found["memorized_calibrated"] == 1
    assert found["authenticity"] == 0
    assert found["ct_score"] < -5
    without = measure(Sets(training.copy(), training)).values
    assert abs(without["frechet_distance"]) < 1e-9
    assert without["precision"] == without["recall"] == without["coverage"] == 1


def test_new_draws_of_the_same_distribution_look_like_held_out_data():
    found = measure(Sets(cloud(300), cloud(300, seed=1), cloud(300, seed=2))).values
    assert found["generalization_score_ratio"] == pytest.approx(1, abs=0.05)
    assert found["memorized_calibrated"] < 0.05
    assert abs(found["ct_score"]) < 3
    assert 40 < found["authenticity"] < 80
    assert abs(found["kernel_distance"]) < 0.05


def test_a_dropped_mode_costs_recall_not_precision():
    two = np.concatenate([cloud(100), cloud(100, seed=1, offset=30)])
    found = measure(
        Sets(cloud(100, seed=2), two, np.concatenate([cloud(100, seed=3), cloud(100, seed=4, offset=30)]))
    ).values
    assert found["recall"] <= 0.5
    assert found["precision"] > 0.7
    assert found["frechet_distance"] > 8 * 30**2 / 4


def test_mirrored_copies_count_where_the_model_was_trained_with_flips():
    rng = np.random.default_rng(0)
    images, other = rng.normal(size=(2, 60, 4, 4)).astype(np.float32)
    training, mirrored, heldout = (x.reshape(60, 16) for x in (images, images[:, :, ::-1], other))
    copies = np.concatenate([mirrored[:15], training[15:30], heldout[:30] + 0.01])
    plain = measure(Sets(copies, training, heldout)).values
    found = evaluate_generation(
        0,
        {"pixel": FeatureSets(copies, training, heldout, mirrored=mirrored)},
        Provenance.sampled(0, 0, 60),
        entropy_size=60,
    ).measures["pixel"]
    assert plain["memorized_fraction"] == 0.25
    assert found["memorized_fraction"] == 0.5
    raised, before = found["memorized_calibrated"], plain["memorized_calibrated"]
    assert raised is not None
    assert before is not None
    assert raised >= 0.5 > before
    assert found["generalization_score"] == plain["generalization_score"]


def test_mirrored_second_neighbours_are_other_images():
    """Two images, each its own mirror image: d2 must be the distance to the other one, not to the mirrored first."""
    training = np.array([[0, 0], [4, 0]], dtype=np.float32)
    near = measure(Sets(np.array([[1, 0], [0.5, 0]], dtype=np.float32), training, mirrored=training.copy()))
    assert near.values["memorized_fraction"] == 0.5  # 1/3 is not below 1/3, 0.5/3.5 is
    with pytest.raises(UserError, match="mirrored: holds 3 points"):
        measure(Sets(training, training, mirrored=np.zeros((3, 2), dtype=np.float32)))


def test_entropy_is_taken_at_the_stated_number_of_points():
    training = cloud(200)
    found = measure(Sets(cloud(50, seed=1), training, entropy_size=60, seed=4))
    assert found.context["entropy_n"] == 60
    rows = np.sort(np.random.default_rng(4).permutation(200)[:60])
    assert found.values["training_entropy"] == pytest.approx(
        measure(Sets(cloud(50, seed=1), training[rows])).values["training_entropy"]
    )


def slow_log_neighbours(x):
    """Mean log distance to the nearest other point, in float64 from the definition, floored."""
    x = x.astype(np.float64)
    every = np.sqrt(((x[:, None] - x) ** 2).sum(2))
    np.fill_diagonal(every, np.inf)
    return np.log(np.maximum(every.min(1), 1e-10)).mean()


@pytest.mark.parametrize(("m", "r"), [(90, 90), (90, 61), (47, 90), (2, 5)])
def test_the_spread_gap_is_that_of_the_definition_at_equal_n(m, r):
    generated, training, reference = 1.3 * cloud(m), cloud(70, seed=1), cloud(r, seed=2)
    generated[1] = generated[0]  # duplicates are floored
    n = min(m, r)
    wanted = slow_log_neighbours(generated[:n]) - slow_log_neighbours(reference[:n])
    assert measure(Sets(generated, training, reference)).values["spread_gap"] == pytest.approx(wanted, rel=1e-9)
    n = min(m, 70)
    wanted = slow_log_neighbours(generated[:n]) - slow_log_neighbours(training[:n])
    assert measure(Sets(generated, training)).values["spread_gap"] == pytest.approx(wanted, rel=1e-9)


def test_the_spread_gap_knows_the_sign_of_the_spread():
    real, other = cloud(300), cloud(300, seed=1)
    assert measure(Sets(real, real)).values["spread_gap"] == 0
    for factor in (0.5, 2):
        gap = measure(Sets(factor * real, other, real)).values["spread_gap"]
        assert gap == pytest.approx(math.log(factor), abs=1e-6)


def test_the_entropy_of_samples_is_taken_at_the_number_of_the_training_sets():
    generated, training = cloud(80), cloud(200, seed=1)
    found = measure(Sets(generated, training, entropy_size=60))
    assert found.values["generated_entropy"] == pytest.approx(kl_entropy(generated[:60]).nats)
    assert math.isnan(measure(Sets(generated, training)).values["generated_entropy"])  # 80 samples, 200 training points


def test_duplicates_are_counted_not_infinite():
    training = np.repeat(cloud(30), 2, axis=0)
    found = measure(Sets(np.repeat(cloud(30, seed=1), 2, axis=0), training, cloud(20, seed=2)))
    assert found.context["entropy_floored"] == found.context["generated_entropy_floored"] == 60
    assert all(math.isfinite(value) for value in found.values.values())


def test_collapse_to_one_point_still_gives_a_row():
    one = np.zeros((30, 4), dtype=np.float32)
    row = evaluate_generation(
        1, {"pixel": FeatureSets(one, one, cloud(30, 4))}, Provenance.sampled(0, 0, 30), entropy_size=None
    )
    assert json.loads(row.as_json())["measures"]["pixel"]["covariance_trace"] == 0


def test_few_points_shrink_k_and_say_so():
    found = measure(Sets(cloud(3), cloud(2, seed=1), cloud(4, seed=2)))
    assert found.context["k"] == {"precision": 3, "recall": 2, "density": 3, "coverage": 3}


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (cloud(5, d=3), "training: has 8 features"),
        (cloud(1), "generated: holds 1 point"),
        (cloud(5)[0], "expected \\[points, features\\]"),
        (np.full((5, 8), np.nan, dtype=np.float32), "not finite"),
        (np.full((5, 8), 1e39), "not finite in float32"),
        (np.ones((5, 8), dtype=bool), "expected float32"),
    ],
)
def test_unusable_features_are_refused_in_one_line(generated, message):
    with pytest.raises(UserError, match=message):
        measure(Sets(generated, cloud(10)))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take_is_refused_in_one_line(seed):
    with pytest.raises(UserError, match=rf"^seed {seed}: must be from 0 to 4294967295$"):
        measure(Sets(cloud(5), cloud(5), seed=seed))


def rank_measure(world, generated, training, reference):
    """Every rank takes its own rows, deliberately unevenly; the last one of three holds no generated point."""
    cuts = {2: ([0, 97, 150], [0, 10, 120], [0, 65, 130]), 3: ([0, 40, 150, 150], [0, 50, 60, 120], [0, 1, 2, 130])}
    parts = zip((generated, training, reference), cuts[world.size], strict=True)
    own = [x[at[world.rank] : at[world.rank + 1]] for x, at in parts]
    found = measure(Sets(*own, world=world, entropy_size=70))
    return found.values, found.context


@pytest.mark.parametrize("size", [2, 3])
def test_the_same_at_any_number_of_ranks(sets, size):
    alone = measure(Sets(*sets, entropy_size=70))
    for values, context in on_threads(size, rank_measure, *sets):
        assert values == pytest.approx(alone.values, rel=1e-6, abs=1e-9)
        assert context["n_generated"] == 150
        assert context["entropy_n"] == 70


def test_rows_are_json_and_carry_what_is_needed_to_read_them(sets):
    generated, training, heldout = sets
    provenance = Provenance.concatenate([Provenance.sampled(REAL, 0, 30), Provenance.sampled(0, 0, 90)])
    both = {name: FeatureSets(generated, training, heldout, digest=name) for name in ("pixel", "classifier")}
    row = evaluate_generation(3, both, provenance, entropy_size=100)
    assert Row.from_json(row.as_json()) == row
    assert Row.from_json(row.as_json()).as_json() == row.as_json()
    assert row.generation == 3
    assert row.provenance == {"real": 0.25, "0": 0.75}
    assert set(row.measures["classifier"]) == ALL
    assert row.context.n_training == 120
    assert row.encoder("pixel").digest == "pixel"
    assert row.encoder("pixel").entropy_n == 100
    assert row.encoder("pixel").resize == "none"
    assert row.encoder("classifier").resize == "images above 32 pixels averaged to 32"
    assert row == evaluate_generation(3, both, provenance, entropy_size=100)


def test_the_baseline_puts_held_out_data_in_the_place_of_samples(sets):
    generated, training, heldout = sets
    row = baseline_row({"pixel": FeatureSets(generated, training, heldout)})
    assert row.value("pixel", "frechet_distance") == measure(Sets(heldout, training)).values["frechet_distance"]
    assert row.value("pixel", "generalization_score_ratio") == 1
    assert row.generation is None


def test_tensors_and_arrays_give_the_same(sets):
    assert measure(Sets(*map(torch.from_numpy, sets))).values == measure(Sets(*sets)).values


def test_configuration_refuses_what_cannot_be():
    assert EvaluationConfig().encoders == ("pixel", "classifier")
    for wrong in ({"encoders": ()}, {"samples": 1}, {"sample": 5}):
        with pytest.raises(ValidationError):
            EvaluationConfig(**wrong)
