"""A training set stored as an index of samples in other folders trains exactly as the same set stored as shards."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from loops import TINY, sealed_bytes, tiny, tiny_file
from present import present
from ranks import on_ranks

from entroloop.data.errors import UserError
from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import open_set
from entroloop.data.store.shards import REAL
from entroloop.data.streams import sharing
from entroloop.data.streams.resident import Resident
from entroloop.data.streams.streaming import Streaming
from entroloop.data.world import World
from entroloop.eval.report import pictures, points
from entroloop.eval.report.runs import read_run
from entroloop.launcher import sweep
from entroloop.launcher.commands.verify import verify_command
from entroloop.launcher.config import compose
from entroloop.launcher.preview.disk import generation_bytes, source_of
from entroloop.launcher.run import runner
from entroloop.launcher.run.recipes import inputs, recipes, steps
from entroloop.launcher.run.retention import removable
from entroloop.launcher.run.runner import Attempt

pytestmark = pytest.mark.slow

INDEX = "data.selected=index"
SHORT = ("train.kimg=0.16", "data.shard_size=20", "data.buffer=2", "sample.shard_size=16", "sample.steps=1")
GROWING = ("generations=3", "loop.paradigm=accumulate", "loop.fresh.share=0.25", "train.labels=true")


def run(folder, *overrides, until=None, attempt=None):
    config = tiny(folder, *SHORT, *overrides)
    runner.run(config, World(), lambda: False, until=until, attempt=attempt or Attempt())
    return Layout(config.run_folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return run(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return run(tmp_path_factory.mktemp("index"), INDEX)


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    until = Step(2, "select")
    return [run(tmp_path_factory.mktemp("growing"), *GROWING, *mode, until=until) for mode in ((), (INDEX,))]


def weights(layout, generation):
    folder = layout.of(Step(generation, "train"))
    return {e.name: e.sha256 for e in manifest.read(folder).files}


def same(one, other):
    """Two sets hold the same samples, labels and provenance, cut alike."""
    np.testing.assert_array_equal(one.all(), other.all())
    assert one.shard_counts == other.shard_counts
    assert (one.shape, one.labelled, len(one)) == (other.shape, other.labelled, len(other))
    for a, b in ((one.labels, other.labels), (one.provenance.generation, other.provenance.generation)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.provenance.index, other.provenance.index)
    assert one.provenance.source == other.provenance.source
    facts = ("label_histogram", "unlabelled", "num_classes")
    assert [one.manifest.about.get(f) for f in facts] == [other.manifest.about.get(f) for f in facts]


def test_weights_and_measures_are_those_of_training_from_shards(shards, index):
    for g in (0, 1):
        assert weights(shards, g) == weights(index, g)
        step = Step(g, "evaluate")
        assert sealed_bytes(shards.of(step))["metrics.jsonl"] == sealed_bytes(index.of(step))["metrics.jsonl"]
        same(open_set(index.of(Step(g, "select"))), Dataset(shards.of(Step(g, "select"))))
    folder = index.of(Step(1, "select"))
    assert not list(folder.glob("*.tar"))
    assert manifest.read(folder).kind == "index"
    assert [entry["name"] for entry in manifest.read(folder).about["sets"]] == ["generation_0000/samples"]
    rows = json.loads((folder / "index-000000.json").read_text())["columns"]
    assert rows["row"] == rows["index"][:20]


def test_streamed_it_trains_the_same_weights_too(shards, tmp_path):
    streamed = run(tmp_path, INDEX, "data.mode=streaming", "data.workers=2", until=Step(1, "train"))
    for g in (0, 1):
        assert weights(shards, g) == weights(streamed, g)


def test_copied_to_scratch_it_trains_the_same_weights_too(shards, tmp_path):
    attempt = Attempt(scratch=tmp_path / "scratch")
    copied = run(tmp_path, INDEX, until=Step(1, "train"), attempt=attempt)
    assert weights(shards, 1) == weights(copied, 1)
    assert len(list((tmp_path / "scratch").glob("entroloop-*/shard-000002.tar"))) == 2


def test_what_a_growing_set_keeps_refers_to_where_its_samples_are(growing):
    written, indexed = growing
    for g in range(3):
        same(open_set(indexed.of(Step(g, "select"))), Dataset(written.of(Step(g, "select"))))
    sets = manifest.read(indexed.of(Step(2, "select"))).about["sets"]
    assert [entry["name"] for entry in sets] == ["real/images", "generation_0000/samples", "generation_0001/samples"]
    assert {Dataset(indexed.run / entry["name"]).manifest.digest for entry in sets} == {e["digest"] for e in sets}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_are_those_of_the_shards_at_any_world_size(growing, size):
    written, indexed = (open_set(layout.of(Step(2, "select"))) for layout in growing)
    for rank in range(size):
        wanted = list(Resident(written, buffer=2).batches(seed=3, seen=12, until=400, batch=12, rank=rank, size=size))
        for stream in (Resident(indexed, buffer=2), Streaming(indexed, workers=rank, buffer=2)):
            found = list(stream.batches(seed=3, seen=12, until=400, batch=12, rank=rank, size=size))
            assert len(found) == len(wanted) > 30
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a.ids, b.ids)
                np.testing.assert_array_equal(a.samples, b.samples)
                np.testing.assert_array_equal(a.labels, b.labels)


def decoded(world, folder):
    return sharing.decode_together(open_set(folder), world).copy()


def test_ranks_decode_it_together(growing):
    folder = growing[1].of(Step(2, "select"))
    for samples in on_ranks(2, decoded, folder):
        np.testing.assert_array_equal(samples, open_set(folder).all())


def test_vectors_train_the_same_weights_and_are_drawn_alike(tmp_path):
    vectors = ("data.source=wine", "data.heldout=48", "network.width=16", "network.depth=1")
    raw = {**TINY, "network": {}}
    runs = []
    for selected, mode in (("shards", "resident"), ("index", "resident"), ("index", "streaming")):
        how = (f"data.selected={selected}", f"data.mode={mode}", "data.workers=0")
        config = compose(raw, [f"folder={tmp_path / selected / mode}", *SHORT, *vectors, *how], "vectors")
        runner.run(config, World(), lambda: False)
        runs.append(Layout(config.run_folder))
    assert weights(runs[0], 1) == weights(runs[1], 1) == weights(runs[2], 1)
    drawn = [points.clouds(read_run(layout.run))[0] for layout in runs[:2]]
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one.training, other.training)


def test_it_is_found_from_within_its_run(index, monkeypatch):
    folder = index.of(Step(1, "select"))
    wanted = open_set(folder).all()
    for here, name in ((folder, "."), (folder.parent, "selected"), (folder.parent / "samples", "../selected")):
        monkeypatch.chdir(here)
        np.testing.assert_array_equal(open_set(Path(name)).all(), wanted)


def test_training_waits_for_the_seals_that_an_index_refers_to(tmp_path):
    train = Step(2, "train")
    assert inputs(tiny(tmp_path), train) == [PREPARE, Step(2, "select")]
    assert inputs(tiny(tmp_path, INDEX), train) == [PREPARE, Step(1, "sample"), Step(2, "select")]
    growing = inputs(tiny(tmp_path, INDEX, "loop.paradigm=accumulate"), train)
    assert growing == [PREPARE, Step(0, "sample"), Step(1, "sample"), Step(2, "select")]


def test_importing_it_makes_shards_of_it(growing, tmp_path):
    folder = growing[1].of(Step(2, "select"))
    import_dataset(str(folder), tmp_path / "plain", Settings(shard_size=20))
    np.testing.assert_array_equal(Dataset(tmp_path / "plain").all(), open_set(folder).all())


def test_a_run_can_be_moved_and_nothing_sealed_names_its_place(index, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(index.run, moved)
    for name, raw in sealed_bytes(moved).items():
        assert str(index.run.parent).encode() not in raw, name
    step = Step(1, "select")
    same(open_set(Layout(moved).of(step)), open_set(index.of(step)))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A run on a sealed set that lies outside of it."""
    folder = tmp_path_factory.mktemp("outside")
    import_dataset("digits", folder / "digits", Settings(shard_size=300))
    return run(folder, INDEX, f"data.source={folder / 'digits'}", "data.limit=null", "generations=1"), folder / "digits"


def test_real_data_outside_the_run_are_named_by_digest_and_found_by_the_configuration(outside):
    layout, source = outside
    folder = layout.of(Step(0, "select"))
    digest = manifest.read(source).digest
    assert manifest.read(folder).about["sets"] == [{"name": "data.source", "digest": digest}]
    assert str(source.parent).encode() not in b"".join(sealed_bytes(layout.run).values())
    np.testing.assert_array_equal(open_set(folder).all(), Dataset(source).take(open_set(folder).provenance.index))


def test_a_source_that_is_missing_or_changed_is_refused_and_verify_names_it(outside, capsys):
    layout, source = outside
    folder = layout.of(Step(0, "select"))
    hidden = source.with_name("hidden")
    verify_command(layout.run)
    source.rename(hidden)
    try:
        with pytest.raises(UserError, match=r"digits: no such folder \(the index .*selected refers to it\)$"):
            open_set(folder).all()
        with pytest.raises(BaseException, match="2"):
            verify_command(layout.run)
        assert f"{source}: no such folder (the index {folder} refers to it)" in capsys.readouterr().err
        import_dataset("digits", source, Settings(limit=500))
        with pytest.raises(UserError, match=r"digits: changed since the index .*selected was made from it$"):
            Streaming(open_set(folder), workers=0).batches(seed=0, seen=0, until=16, batch=16).__next__()
        shutil.rmtree(source)
    finally:
        hidden.rename(source)


def test_a_damaged_sample_stops_with_its_shard_and_damage_elsewhere_does_not_matter(index, tmp_path):
    layout = Layout(tmp_path / "run")
    shutil.copytree(index.run, layout.run)
    one = open_set(layout.of(Step(1, "select")))
    chosen = set(one.provenance.index.tolist())
    shard = layout.of(Step(0, "sample")) / "shard-000001.tar"
    columns = json.loads(shard.with_suffix(".json").read_text())["columns"]
    whole = shard.read_bytes()
    for row in range(16):
        raw = bytearray(whole)
        raw[columns["offset"][row] + columns["size"][row] // 2] ^= 255
        shard.write_bytes(raw)
        if 16 + row in chosen:
            with pytest.raises(UserError, match=rf"shard-000001\.tar: damaged shard, at sample 0000000{16 + row}:"):
                open_set(layout.of(Step(1, "select"))).all()
        else:
            open_set(layout.of(Step(1, "select"))).all()
    raw = bytearray((path := layout.of(Step(1, "select")) / "index-000000.json").read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"index-000000\.json: content changed since it was sealed"):
        open_set(layout.of(Step(1, "select"))).all()


def test_retention_keeps_the_samples_that_an_index_refers_to(shards, tmp_path):
    keep = ("keep.samples=needed", "keep.features=needed", INDEX)
    lean = run(tmp_path, *keep)
    for g in (0, 1):
        assert not manifest.removed(lean.of(Step(g, "sample")))
        open_set(lean.of(Step(g, "select"))).all()
    assert weights(lean, 1) == weights(shards, 1)
    for paradigm in ("replace", "accumulate", "accumulate-subsample"):
        config = tiny(tmp_path, *keep, "generations=5", f"loop.paradigm={paradigm}")
        order = list(steps(5))
        for done in range(len(order) + 1):
            gone = removable(config, set(order[:done]).__contains__)
            assert not [step for step in gone if step.phase == "sample"]


def test_verify_names_what_an_index_lost(index, tmp_path, capsys):
    shutil.copytree(index.run, tmp_path / "run")
    samples = tmp_path / "run" / "generation_0000" / "samples"
    (samples / "removed.json").write_text('{"removed": ["shard-000001.tar"]}')
    (samples / "shard-000001.tar").unlink()
    with pytest.raises(BaseException, match="2"):
        verify_command(tmp_path / "run")
    assert "shard-000001.tar: missing (the index" in capsys.readouterr().err


def test_the_report_shows_the_same_pairs(shards, index):
    first, second = (pictures.nearest_pairs(read_run(layout.run)) for layout in (shards, index))
    assert first == second


def test_it_takes_the_disk_that_is_foreseen(index, shards):
    for layout, mode in ((shards, ()), (index, (INDEX,))):
        config = tiny(layout.run.parent, *SHORT, *mode)
        for g in (0, 1):
            foreseen = generation_bytes(config, present(source_of(config)), g, 1000)["selected"]
            used = sum(path.stat().st_size for path in layout.of(Step(g, "select")).iterdir())
            assert 0.3 * foreseen < used < 1.1 * foreseen + 3000


@pytest.mark.usefixtures("forked_arms")
def test_arms_of_a_sweep_link_an_index_with_what_it_refers_to(tmp_path):
    path = tiny_file(tmp_path, *SHORT, INDEX, "generations=2", "name=grid")
    with path.open("a") as file:
        file.write("sweep: {jobs: 2, grid: {selection.strategy: [random, greedy]}}\n")
    sweep.run(path, [], lambda: False)
    arms = tmp_path / "runs" / "grid"
    shutil.rmtree(arms / "random")
    assert len(open_set(arms / "greedy" / "generation_0000" / "selected").all()) == 48
    assert len(open_set(arms / "greedy" / "generation_0001" / "selected").all()) == 48


def test_recipes_of_shards_are_what_they_were_and_those_of_an_index_differ_from_the_first_selection_on(tmp_path):
    plain, same_, other = (recipes(tiny(tmp_path, *o)) for o in ((), ("data.selected=shards",), (INDEX,)))
    assert plain == same_
    assert plain[PREPARE] == other[PREPARE]
    assert plain[Step(0, "select")] != other[Step(0, "select")]


@pytest.mark.parametrize("paradigm", ["accumulate", "accumulate-subsample"])
def test_unconditional_runs_on_labelled_data_state_the_classes_of_their_real_images(tmp_path, paradigm):
    layout = run(tmp_path, "generations=3", f"loop.paradigm={paradigm}", until=Step(2, "select"))
    real = Dataset(layout.images).labels
    assert real is not None
    for g in range(3):
        one = Dataset(layout.of(Step(g, "select")))
        where = one.provenance
        rows = where.index[where.generation == REAL]
        assert one.manifest.about["label_histogram"] == np.bincount(real[rows], minlength=10).tolist()
        assert one.manifest.about["unlabelled"] == len(one) - len(rows)
    assert 0 < len(rows) < len(one)


def test_replaced_real_images_leave_an_empty_histogram(shards):
    about = manifest.read(shards.of(Step(1, "select"))).about
    assert (sum(about["label_histogram"]), len(about["label_histogram"]), about["unlabelled"]) == (0, 10, 48)


def test_a_source_with_a_history_of_its_own_counts_as_real_data(shards, tmp_path):
    """Samples of one run as the real data of another: they are its real images, whoever drew them."""
    samples = shards.of(Step(1, "sample"))
    sizes = (f"data.source={samples}", "data.size=24", "data.heldout=24", "generations=2")
    layout = run(tmp_path, *sizes, "loop.paradigm=accumulate", "selection.strategy=random")
    one = Dataset(layout.of(Step(0, "select")))
    assert (one.provenance.generation == REAL).all()
    np.testing.assert_array_equal(one.all(), Dataset(samples).take(one.provenance.index))
    row = json.loads((layout.of(Step(1, "evaluate")) / "metrics.jsonl").read_text())
    assert row["provenance"] == {"real": 0.5, "0": 0.5}
