"""Pools: fresh real images by schedule and never twice, stratified and class-balanced draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import TINY, VECTORS, tiny
from present import present
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import REAL
from entroloop.data.world import World
from entroloop.launcher.preview.dry_run import describe
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.phases import select as selecting
from entroloop.launcher.run.recipes import recipes
from entroloop.selection.pool import (
    FreshConfig,
    LoopConfig,
    check_fresh,
    choice,
    pool_of,
    pool_size,
    settled,
    training_size,
)


def run(folder, *overrides, until, of=VECTORS):
    config = tiny(folder, *overrides, of=of)
    runner.run(config, World(), lambda: False, until=until)
    return Layout(config.run_folder)


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({"schedule": "constant"}, [0.4, 0.4, 0.4, 0.4, 0.4]),
        ({"schedule": "linear", "over": 4}, [0.4, 0.3, 0.2, 0.1, 0.0]),
        ({"schedule": "decaying", "decay": 0.5}, [0.4, 0.2, 0.1, 0.05, 0.025]),
    ],
)
def test_schedules(settings_, expected):
    fresh = FreshConfig(share=0.4, **settings_)
    assert [fresh.at(g) for g in range(1, 6)] == pytest.approx(expected)


@settings(deadline=None)
@given(
    st.sampled_from(["replace", "accumulate", "accumulate-subsample"]),
    st.sampled_from(["constant", "linear", "decaying"]),
    st.floats(0, 1),
    st.integers(2, 60),
    st.integers(2, 8),
)
def test_fresh_images_follow_each_other_and_training_sets_keep_their_size(paradigm, schedule, share, size, generations):
    config = LoopConfig(paradigm=paradigm, fresh=FreshConfig(share=share, schedule=schedule))
    taken: list[int] = []
    for g in range(1, generations):
        pool = pool_of(config, g, size)
        assert pool.choose + len(pool.fresh) == size
        taken += pool.fresh
    assert taken == list(range(len(taken)))
    check_fresh(config, generations, size, len(taken))
    if taken:
        with pytest.raises(UserError, match=f"run out at generation .*needs {len(taken)} in all"):
            check_fresh(config, generations, size, len(taken) - 1)


@pytest.mark.slow
def test_fresh_real_images_train_once_and_are_neither_held_out_nor_trained_on_before(tmp_path):
    overrides = ("generations=3", "loop.fresh.share=0.25", "selection.strategy=random", "loop.paradigm=accumulate")
    layout = run(tmp_path, *overrides, until=Step(2, "select"))
    sets = [Dataset(layout.of(Step(g, "select"))) for g in range(3)]
    real = [one.provenance.index[one.provenance.generation == REAL] for one in sets]
    assert [len(rows) for rows in real] == [48, 60, 72]
    assert [len(one) for one in sets] == [48, 96, 144]
    assert set(real[0]) < set(real[1]) < set(real[2])
    assert len(set(real[2].tolist())) == 72
    images = Dataset(layout.images)
    found = sets[2].all()[sets[2].provenance.generation == REAL]
    np.testing.assert_array_equal(found, images.take(real[2]))


@settings(deadline=None)
@given(
    st.sampled_from(["replace", "accumulate", "accumulate-subsample"]), st.booleans(), st.integers(1, 3),
    st.floats(0, 1), st.sampled_from(["constant", "linear", "decaying"]), st.integers(1, 9), st.floats(0.01, 0.99),
    st.sampled_from([0, 0.3, 1]),
    st.integers(2, 60), st.integers(0, 300),
)  # fmt: skip
def test_sizes_by_the_shorter_way_are_those_counted_one_by_one(
    paradigm, every, candidates, share, schedule, over, decay, keep_real, size, available
):
    fresh = FreshConfig(share=share, schedule=schedule, over=over, decay=decay)
    kept = 0 if every or paradigm == "accumulate" else keep_real
    loop = LoopConfig(paradigm=paradigm, all_candidates=every, candidates=candidates, fresh=fresh, keep_real=kept)
    counts = [round(fresh.at(g) * size) for g in range(1, 60)]
    assert len(set(counts[min(settled(loop, size), 60) - 1 :])) <= 1
    trained = size
    for g in range(1, 30):
        pool = pool_of(loop, g, size)
        assert pool.fresh == range(sum(counts[: g - 1]), sum(counts[:g]))
        assert choice(loop, g, size)[0] == pool.choose
        if pool.choose:
            assert choice(loop, g, size)[1] == pool_size(loop, pool.pool, size)
        trained = (trained if pool.keep else 0) + pool.choose + len(pool.fresh) + pool.real
        assert training_size(loop, g, size) == trained
    first = next((g for g in range(1, 30) if sum(counts[:g]) > available), None)
    if first is None:
        check_fresh(loop, 30, size, available)
    else:
        with pytest.raises(UserError, match=rf"run out at generation {first}, which needs {sum(counts[:first])} "):
            check_fresh(loop, 30, size, available)


def test_all_fresh_is_training_on_real_data_only(tmp_path):
    layout = run(tmp_path, "loop.fresh.share=1", until=Step(1, "select"))
    assert (Dataset(layout.of(Step(1, "select"))).provenance.generation == REAL).all()


def test_fresh_images_that_run_out_are_refused_before_the_work_and_in_a_dry_run(tmp_path):
    config = tiny(tmp_path / "runs", "loop.fresh.share=1", "generations=40")
    refused = r"loop\.fresh\.share=1: the 48 real images .* run out at generation 2"
    with pytest.raises(UserError, match=refused):
        describe(config)
    with pytest.raises(UserError, match=refused):
        runner.run(config, World(), lambda: False)
    assert not (tmp_path / "runs" / "tiny" / "generation_0000").exists()


@pytest.mark.slow
def test_a_stratified_draw_takes_as_many_from_each_source(tmp_path):
    overrides = ("generations=3", "selection.strategy=random", "loop.paradigm=accumulate-subsample")
    layout = run(tmp_path, *overrides, "loop.draw=stratified", until=Step(2, "select"))
    generations = Dataset(layout.of(Step(2, "select"))).provenance.generation
    assert np.unique(generations, return_counts=True)[1].tolist() == [16, 16, 16]
    with pytest.raises(UserError, match=r"loop\.draw=stratified: is for selection\.strategy=random, not greedy"):
        tiny(tmp_path, "loop.draw=stratified")


@pytest.mark.slow
def test_balanced_classes_and_the_histogram_in_every_training_set(tmp_path):
    labelled = ("train.labels=true", "sample.labels=training", "data.labelled=0")
    layout = run(tmp_path, *labelled, "loop.balanced=true", "data.size=50", "seed=1", until=Step(1, "select"), of=TINY)
    for g in (0, 1):
        chosen = Dataset(layout.of(Step(g, "select")))
        counts = np.bincount(present(chosen.labels), minlength=10).tolist()
        assert manifest.read(chosen.folder).about["label_histogram"] == counts
    assert min(counts) >= 1
    assert sum(counts) == 50
    labels = present(Dataset(layout.of(Step(0, "sample"))).labels)
    candidates = np.bincount(labels[:100], minlength=10)
    assert max(counts) - min(counts) <= 1 or min(candidates) < 5
    with pytest.raises(UserError, match=r"loop\.balanced=true: only a model with train\.labels=true"):
        run(tmp_path / "other", "loop.balanced=true", until=Step(0, "select"))


def test_recipes_of_runs_without_the_new_keys_are_what_they_were(tmp_path):
    plain, same = tiny(tmp_path), tiny(tmp_path, "loop.fresh.share=0", "loop.draw=uniform", "data.mode=streaming")
    assert recipes(plain) == recipes(same)
    other = recipes(tiny(tmp_path, "loop.fresh.share=0.5"))
    assert other[Step(0, "evaluate")] == recipes(plain)[Step(0, "evaluate")]
    assert other[Step(1, "select")] != recipes(plain)[Step(1, "select")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paradigm", "sizes", "candidates"),
    [("replace", [48, 96, 96], 96), ("accumulate", [48, 144, 240], 96), ("accumulate-subsample", [48, 144, 240], 240)],
)
def test_all_candidates_are_the_control_without_a_choice(tmp_path, paradigm, sizes, candidates):
    overrides = (
        "generations=3", "selection.strategy=random", f"loop.paradigm={paradigm}", "loop.all_candidates=true",
        "loop.candidates=2",
    )  # fmt: skip
    layout = run(tmp_path, *overrides, until=Step(2, "select"))
    sets = [Dataset(layout.of(Step(g, "select"))) for g in range(3)]
    assert [len(one) for one in sets] == sizes
    config = tiny(tmp_path, *overrides)
    assert [training_size(config.loop, g, 48) for g in range(3)] == sizes
    origins = list(zip(sets[2].provenance.generation.tolist(), sets[2].provenance.index.tolist(), strict=True))
    assert len(set(origins)) == sizes[2], "none twice"
    assert {g for g, _ in origins} == ({1} if paradigm == "replace" else {REAL, 0, 1})
    assert f"all of {candidates} candidates" in describe(config)


def test_all_candidates_with_fresh_images_beside_them(tmp_path):
    overrides = ("selection.strategy=random", "loop.all_candidates=true", "loop.fresh.share=0.25")
    layout = run(tmp_path, *overrides, until=Step(1, "select"))
    generations = Dataset(layout.of(Step(1, "select"))).provenance.generation
    assert np.unique(generations, return_counts=True)[1].tolist() == [12, 96]


@pytest.mark.parametrize("other", ["selection.strategy=greedy", "loop.draw=stratified", "loop.balanced=true"])
def test_all_candidates_leave_nothing_to_choose(tmp_path, other):
    with pytest.raises(UserError, match=r"loop\.all_candidates=true: nothing is chosen: .*selection\.strategy=random"):
        tiny(tmp_path, "selection.strategy=random", "loop.all_candidates=true", other)


@pytest.mark.slow
@pytest.mark.parametrize("paradigm", ["replace", "accumulate-subsample"])
def test_real_images_are_kept_before_the_choice(tmp_path, paradigm):
    overrides = ("generations=3", f"loop.paradigm={paradigm}", "loop.keep_real=0.25", "loop.fresh.share=0.125")
    layout = run(tmp_path, *overrides, until=Step(2, "select"))
    sets = [Dataset(layout.of(Step(g, "select"))).provenance for g in range(3)]
    real = [set(one.index[one.generation == REAL].tolist()) for one in sets]
    assert [(len(one), len(rows)) for one, rows in zip(sets, real, strict=True)] == [(48, 48), (48, 18), (48, 18)]
    for rows in real[1:]:
        assert len(rows & real[0]) == 12, "the other 6 are fresh"
    assert real[1] != real[2]
    # 2 N samples of one generation, or N of each of two
    assert "30 of 96 candidates, 12 real" in describe(tiny(tmp_path / "other", *overrides, of=VECTORS))


@pytest.mark.slow
@pytest.mark.parametrize("paradigm", ["replace", "accumulate-subsample"])
@pytest.mark.parametrize("share", ["1", "true"])
def test_real_only_trains_on_the_real_images_again(tmp_path, paradigm, share):
    layout = run(tmp_path, f"loop.paradigm={paradigm}", f"loop.keep_real={share}", until=Step(1, "select"))
    first, again = (Dataset(layout.of(Step(g, "select"))) for g in (0, 1))
    np.testing.assert_array_equal(again.provenance.index, first.provenance.index)
    np.testing.assert_array_equal(again.all(), first.all())
    assert "generation_0000/sample" not in again.manifest.made_from


@pytest.mark.parametrize(("paradigm", "candidates"), [("replace", 2), ("accumulate", 2), ("accumulate-subsample", 1)])
def test_candidates_are_sampled_twice_only_where_the_pool_holds_no_others(paradigm, candidates):
    assert LoopConfig.model_validate({"paradigm": paradigm}).candidates == candidates
    assert LoopConfig.model_validate({"paradigm": paradigm, "candidates": 3}).candidates == 3


@pytest.mark.parametrize("other", ["loop.paradigm=accumulate", "loop.all_candidates=true"])
def test_real_images_are_not_kept_twice(tmp_path, other):
    with pytest.raises(UserError, match=r"loop\.keep_real=1: "):
        tiny(tmp_path, "selection.strategy=random", "loop.keep_real=1", other)


def _choose(world, config, generation):
    context = Context(config, Layout(config.run_folder), world)
    return selecting._chosen(context, Step(generation, "select"))[2]


@pytest.mark.slow
def test_the_reference_is_the_trusted_set_and_the_same_at_any_number_of_ranks(tmp_path):
    chosen = {}
    for trusted in (0, 16):
        overrides = (f"name=trusted{trusted}", f"data.trusted={trusted}", "selection.strategy=voronoi")
        run(tmp_path, *overrides, until=Step(0, "encode"))
        for strategy in ("voronoi", "herding", "entropy-matching"):
            config = tiny(tmp_path, *overrides, f"selection.strategy={strategy}", of=VECTORS)
            alone = _choose(World(), config, 1)
            for ids in on_threads(3, _choose, config, 1):
                np.testing.assert_array_equal(ids, alone)
            chosen[strategy, trusted] = set(alone)
    for strategy in ("voronoi", "herding"):
        assert chosen[strategy, 0] != chosen[strategy, 16]
