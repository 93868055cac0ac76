"""The torchmetrics forms: equal to the functions, at any number of ranks, and beside the library's own metrics."""

import pickle

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance

from entroloop.data.errors import UserError
from entroloop.data.features.pixel import Pixel
from entroloop.data.world import World
from entroloop.eval.catalogue import MEASURES
from entroloop.eval.measures import torchmetrics as metrics
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets

SINGLE = [
    metrics.FrechetDistance, metrics.KernelDistance, metrics.Precision, metrics.Recall, metrics.Density,
    metrics.Coverage, metrics.VendiScore, metrics.CovarianceTrace, metrics.EffectiveRank, metrics.GeneralizationScore,
    metrics.GeneralizationScoreRatio, metrics.MemorizedFraction, metrics.MemorizedCalibrated, metrics.Authenticity,
    metrics.CTScore, metrics.TrainingEntropy, metrics.GeneratedEntropy, metrics.SpreadGap,
]  # fmt: skip


def cloud(n, seed, offset=0.0, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.fixture(scope="module")
def sets():
    return {"generated": cloud(90, 1, 0.2), "training": cloud(80, 2), "reference": cloud(70, 3)}


def fill(metric, sets, batch=32):
    for role, x in sets.items():
        for part in torch.split(x, batch):
            metric.update(part, role=role)
    return metric


def measure_name(kind):
    return getattr(kind, "name", "") or "frechet_distance"


def test_every_measure_has_a_metric():
    assert {measure_name(kind) for kind in SINGLE} == set(MEASURES.built_in)


@pytest.mark.parametrize("kind", SINGLE)
def test_batches_give_the_function_of_the_whole(kind, sets):
    name = measure_name(kind)
    expected = measure(Sets(**sets), only=[name]).values[name]
    assert float(fill(kind(), sets).compute()) == pytest.approx(expected, rel=1e-9)


def test_a_collection_updates_them_together(sets):
    collection = MetricCollection([kind() for kind in SINGLE], compute_groups=False)
    fill(collection, sets)
    found = {key: float(value) for key, value in collection.compute().items()}
    assert len(found) == len(MEASURES.built_in)
    assert found["Precision"] == pytest.approx(measure(Sets(**sets)).values["precision"])


def test_all_measures_share_their_searches(sets):
    assert fill(metrics.AllMeasures(entropy_size=50), sets).compute() == measure(Sets(**sets, entropy_size=50)).values


def test_without_a_reference_what_needs_one_says_so(sets):
    two = {role: sets[role] for role in ("generated", "training")}
    assert set(fill(metrics.AllMeasures(), two).compute()) == {
        name for name, facts in MEASURES.built_in.items() if not facts.needs_reference
    }
    with pytest.raises(UserError, match="needs reference samples"):
        fill(metrics.CTScore(), two).compute()
    assert float(fill(metrics.FrechetDistance(), two).compute()) == pytest.approx(
        measure(Sets(**two)).values["frechet_distance"]
    )


def test_reset_forgets(sets):
    metric = fill(metrics.GeneralizationScore(), sets)
    metric.reset()
    fill(metric, {**sets, "generated": sets["training"]})
    assert float(metric.compute()) == 0
    sums = fill(metrics.FrechetDistance(), sets)
    sums.reset()
    assert float(fill(sums, {**sets, "generated": sets["reference"]}).compute()) < 1e-9


def test_the_distance_keeps_sums_and_no_samples(sets):
    metric = fill(metrics.FrechetDistance(), {"generated": cloud(1000, 5), "training": cloud(900, 6)}, batch=7)
    assert [tuple(x.shape) for x in metric.generated] == [(8, 6)]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.update(cloud(3, 0), role="real"), "role 'real' does not exist"),
        (lambda m: m.update(cloud(3, 0)[0]), "expected \\[points, features\\]"),
        (lambda m: (m.update(cloud(3, 0)), m.compute()), "training: holds 0 points"),
        (lambda m: (m.update(cloud(3, 0)), m.update(cloud(3, 0, d=4)), m.compute()), "different widths: 4, 6"),
    ],
)
def test_wrong_use_is_one_clear_line(act, message):
    with pytest.raises(UserError, match=message):
        act(metrics.Precision())


@pytest.mark.parametrize("kind", [metrics.FrechetDistance, metrics.Precision, metrics.AllMeasures])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.update(cloud(9, 0) / 0, role="training"), "^training: features hold values that are not finite"),
        (lambda m: m.update(cloud(9, 0) * np.nan), "^generated: features hold values that are not finite"),
        (lambda m: m.update(cloud(9, 0).double() * 1e160), "^generated: .* not finite in float32"),
        (lambda m: m.update(cloud(9, 0).to(torch.complex64)), "^generated: features of type torch.complex64"),
        (lambda m: m.update(cloud(9, 0) > 0), "^generated: features of type torch.bool; expected float32"),
        (lambda m: (m.update(cloud(9, 0)), m.update(cloud(9, 0, d=4))), "^generated: features of different widths: 4,"),
        (
            lambda m: (m.update(cloud(9, 0, d=5)), m.update(cloud(9, 1, d=3), role="training"), m.compute()),
            "^training: has 3 features per point, but generated has 5",
        ),
        (
            lambda m: (fill(m, {"generated": cloud(9, 0), "training": cloud(9, 1), "reference": cloud(9, 2, d=2)}),
                       m.compute()),
            "^reference: has 2 features per point, but generated has 6",
        ),
    ],
)  # fmt: skip
def test_features_that_no_measure_takes_are_one_clear_line_in_every_metric(kind, act, message):
    with pytest.raises(UserError, match=message) as caught:
        act(kind())
    assert "\n" not in str(caught.value)


def rank_widths(world, kind):
    metric = kind()
    fill(metric, {"generated": cloud(9, 0, d=4 + world.rank), "training": cloud(9, 1)})
    try:
        metric.compute()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", [metrics.FrechetDistance, metrics.Precision])
def test_widths_that_differ_between_ranks_are_refused_on_all_of_them(kind):
    assert on_ranks(2, rank_widths, kind) == ["generated: features of different widths: 4, 5"] * 2


def rank_metrics(world, sets):
    """Samples of the three sets fall unevenly on the ranks; the last rank of several sees nothing at all."""
    cuts = {1: (0, 1.0), 2: (0, 1.0, 1.0), 3: (0, 0.4, 1.0, 1.0)}[world.size]
    mine = {}
    for role, x in sets.items():
        start, stop = (round(len(x) * cut) for cut in cuts[world.rank : world.rank + 2])
        mine[role] = x[start:stop]
    seen = cuts[world.rank] < 1
    metric = metrics.AllMeasures(entropy_size=50)
    distance = fill(metrics.FrechetDistance(), mine if seen else {})
    real = metrics.RealShare()
    real.update(np.array([-1, 0, 2]) if seen else np.array([], dtype=np.int64))
    return fill(metric, mine if seen else {}).compute(), float(distance.compute()), float(real.compute())


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_same_at_any_number_of_ranks(sets, size):
    expected = measure(Sets(**sets, entropy_size=50)).values
    for values, distance, real in on_ranks(size, rank_metrics, sets) if size > 1 else [rank_metrics(World(), sets)]:
        assert values == pytest.approx(expected, rel=1e-7)
        assert distance == pytest.approx(expected["frechet_distance"], rel=1e-9)
        assert real == pytest.approx(1 / 3)


def images(n, seed, shape=(1, 4, 4)):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def rank_library(world, real, fake):
    mine = slice(world.rank, None, world.size)
    found = metrics.library_metrics(Pixel((1, 4, 4)), (1, 4, 4), subsets=3)
    out = {}
    for name in ("fid", "mifid"):
        found[name].update(real[mine], real=True)
        found[name].update(fake[mine], real=False)
        out[name] = float(found[name].compute())
    found["kid"].update(real[:50][mine], real=True)  # of equal sizes, so that every subset is all of both
    found["kid"].update(fake[mine], real=False)
    out["kid"], out["spread"] = map(float, found["kid"].compute())
    return out


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_librarys_own_metrics_take_our_encoder_at_any_number_of_ranks(size):
    real, fake = images(60, 0), images(50, 1)
    expected = measure(Sets(fake.flatten(1).float(), real.flatten(1).float()), only=["frechet_distance"]).values
    kernel = measure(Sets(fake.flatten(1).float(), real[:50].flatten(1).float()), only=["kernel_distance"]).values
    alone = rank_library(World(), real, fake)
    for found in on_ranks(size, rank_library, real, fake) if size > 1 else [alone]:
        assert found["fid"] == pytest.approx(expected["frechet_distance"], rel=1e-5)
        assert found["mifid"] == pytest.approx(alone["mifid"], rel=1e-3)
        assert found["kid"] == pytest.approx(kernel["kernel_distance"], rel=1e-3)
        assert found["spread"] < 1e-3 * abs(found["kid"])


def test_the_librarys_kid_draws_subsets_around_ours():
    real, fake = images(60, 0), images(60, 1) // 2
    kid = metrics.library_metrics(Pixel((1, 4, 4)), (1, 4, 4), subsets=50, subset_size=40)["kid"]
    torch.manual_seed(0)
    kid.update(real, real=True)
    kid.update(fake, real=False)
    mean, spread = (float(x) for x in kid.compute())
    ours = measure(Sets(fake.flatten(1).float(), real.flatten(1).float()), only=["kernel_distance"])
    assert abs(mean - ours.values["kernel_distance"]) < spread


def test_kid_of_fewer_images_than_its_subsets():
    kid = metrics.library_metrics(Pixel((1, 4, 4)), (1, 4, 4), subsets=2, subset_size=40)["kid"]
    kid.update(images(60, 0), real=True)
    kid.update(images(39, 1), real=False)
    with pytest.raises(UserError, match=r"^KID: subset_size 40, but the smaller set holds 39 images"):
        kid.compute()
    small = metrics.library_metrics(Pixel((1, 4, 4)), (1, 4, 4))["kid"]
    small.update(images(60, 0), real=True)
    small.update(images(1, 1), real=False)
    with pytest.raises(UserError, match=r"^KID: needs at least 2 real and 2 generated images"):
        small.compute()
    small.update(images(1, 2), real=False)
    assert torch.isfinite(small.compute()[0])
    small.update(images(58, 3), real=False)
    mean, spread = small.compute()
    assert spread < 1e-3 * mean.abs()  # all of both sets, not the two images of before


@pytest.mark.parametrize("given", [lambda x: x, lambda x: x.numpy()])
def test_the_encoder_is_applied_to_what_is_given(given):
    real, fake = images(60, 0), images(50, 1)
    metric = metrics.FrechetDistance(Pixel((1, 4, 4)))
    metric.update(given(real), role="training")
    metric.update(given(fake))
    library = FrechetInceptionDistance(
        feature=metrics.EncoderModule(Pixel((1, 4, 4))), input_img_size=(1, 4, 4), antialias=False
    )
    library.set_dtype(torch.float64)
    library.update(real, real=True)
    library.update(fake, real=False)
    assert float(metric.compute()) == pytest.approx(float(library.compute()), rel=1e-5)


def test_metrics_survive_a_save_in_the_middle(sets, tmp_path):
    metric = metrics.GeneralizationScore()
    metric.persistent(True)
    metric.update(sets["generated"][:40])
    metric.update(sets["training"], role="training")
    torch.save(metric.state_dict(), tmp_path / "state.pt")
    again = metrics.GeneralizationScore()
    again.persistent(True)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    again.update(sets["generated"][40:])
    expected = measure(Sets(**sets), only=["generalization_score"]).values["generalization_score"]
    assert float(again.compute()) == pytest.approx(expected)


def spread(sets):
    return float(sets.generated.std())


def not_a_number(sets):
    return sets.generated.std()


vars(spread).update(needs_reference=True)


def test_a_measure_of_the_users_own_is_taken_like_the_others(sets):
    name = f"{__name__}:spread"
    found = measure(Sets(**sets), more=[name]).values
    assert set(found) == {*MEASURES.built_in, name}
    assert found[name] == float(sets["generated"].std())
    kind = metrics.metric_of(name)
    assert kind.__name__ == "Spread"
    assert float(fill(kind(), sets).compute()) == pytest.approx(found[name])
    two = {role: sets[role] for role in ("generated", "training")}
    assert name not in measure(Sets(**two), more=[name]).values
    with pytest.raises(UserError, match="not_a_number: must return one number, returned Tensor"):
        measure(Sets(**sets), more=[f"{__name__}:not_a_number"])


def test_classes_take_name_and_facts_from_the_catalogue():
    assert metrics.Precision.higher_is_better is True
    assert metrics.CTScore.name == "ct_score"
    assert metrics.MemorizedFraction.__doc__.startswith("Share of generated images")
    assert pickle.loads(pickle.dumps(metrics.Density())).name == "density"
