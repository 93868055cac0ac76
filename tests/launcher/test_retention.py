"""Retention: removed files are never read again, seals stay verifiable, and the disk use of a run is forecast."""

import json

import pytest
from loops import VECTORS, sealed_bytes, tiny, tiny_file
from present import present

from entroloop.data.errors import Failed, UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.world import World
from entroloop.launcher import process, status, sweep
from entroloop.launcher.commands.slurm import arm_command, conclude_command
from entroloop.launcher.commands.verify import verify_command
from entroloop.launcher.preview.disk import describe_disk, generation_bytes, source_of
from entroloop.launcher.run import runner
from entroloop.launcher.run.recipes import inputs, steps
from entroloop.launcher.run.retention import removable

pytestmark = pytest.mark.slow

KEEP = ("keep.samples=needed", "keep.features=needed")
LITTLE = ("train.kimg=0.16", "train.checkpoint_kimg=0.08", "generations=3", "sample.shard_size=16")


def run(folder, *overrides):
    config = tiny(folder, *LITTLE, *overrides)
    runner.run(config, World(), lambda: False)
    return Layout(config.run_folder)


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    return run(tmp_path_factory.mktemp("lean"), *KEEP)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), "keep.checkpoints=all")


def test_seals_are_the_same_and_only_what_goes_is_gone(lean, whole):
    kept = sealed_bytes_there(lean)
    everything = sealed_bytes(whole.run)
    assert kept.items() < everything.items()
    gone = sorted(everything.keys() - kept.keys())
    assert {name.split("/")[1] for name in gone} == {"samples", "features"}
    assert {name.split("/")[0] for name in gone} == {"generation_0000", "generation_0001"}
    assert "generation_0000/samples/shard-000000.tar" in kept  # the report shows it
    assert list(whole.checkpoints(0).glob("*.pt"))
    assert not list(lean.checkpoints(0).glob("*.pt"))


def sealed_bytes_there(layout):
    found = {}
    for path in sorted(layout.run.rglob(manifest.MANIFEST)):
        found[str(path.relative_to(layout.run))] = path.read_bytes()
        for entry in manifest.read(path.parent).files:
            file = path.parent / entry.name
            if file.exists():
                found[str(file.relative_to(layout.run))] = file.read_bytes()
    return found


def test_verify_tells_removed_from_missing(lean, tmp_path, capsys):
    verify_command(lean.run)
    said = capsys.readouterr().out
    assert "shard-000001.tar: removed by retention" in said
    assert "all intact" in said
    verify_command(lean.run, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["removed"] > 0
    assert facts["problems"] == []
    folder = tmp_path / "moved"
    manifest.copy_sealed(lean.of(Step(0, "sample")), folder)
    assert manifest.problems(folder) == []
    (folder / "shard-000000.tar").unlink()
    assert manifest.problems(folder) == [f"{folder / 'shard-000000.tar'}: missing"]
    with pytest.raises(UserError, match="removed by retention"):
        Dataset(folder).shard(1)


def test_a_lean_run_can_be_continued_with_the_same_bytes(lean, whole, tmp_path):
    for layout, keep in ((lean, KEEP), (whole, ("keep.checkpoints=all",))):
        runner.run(tiny(layout.run.parent, *LITTLE, *keep, "generations=4"), World(), lambda: False)
    for phase in ("select", "train", "evaluate"):
        assert sealed_bytes(lean.of(Step(3, phase))) == sealed_bytes(whole.of(Step(3, phase)))


@pytest.mark.parametrize("paradigm", ["replace", "accumulate", "accumulate-subsample"])
def test_nothing_goes_that_an_unsealed_step_reads(tmp_path, paradigm):
    """At every point of a run; under replace something goes, under accumulate-subsample nothing may."""
    config = tiny(tmp_path, *KEEP, "generations=5", f"loop.paradigm={paradigm}")
    order = list(steps(5))
    for done in range(len(order) + 1):
        sealed = set(order[:done])
        gone = set(removable(config, lambda step: step in sealed))  # noqa: B023
        assert gone <= sealed
        for step in steps(8):
            if step not in sealed:
                assert not gone & set(inputs(config, step))
    left = {(s.phase, s.generation) for s in gone}
    expected = {
        "replace": {(phase, g) for phase in ("sample", "encode") for g in range(4)},
        "accumulate": {("sample", g) for g in range(4)},
        "accumulate-subsample": set(),
    }
    assert left == expected[paradigm]


def test_an_attempt_killed_while_it_removed_is_finished_by_the_next(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"1")
    manifest.seal(tmp_path, "features", 1, ["a", "b"])
    (tmp_path / manifest.REMOVED).write_text('{"removed": ["a"]}')
    assert manifest.remove(tmp_path, ["a"]) == 5
    assert manifest.problems(tmp_path) == []
    assert manifest.remove(tmp_path, ["a", "b"]) == 1
    assert manifest.removed(tmp_path) == {"a", "b"}


def test_the_dry_run_foresees_the_disk_and_status_shows_it(whole, tmp_path):
    config = tiny(whole.run.parent, *LITTLE)
    source = present(source_of(config))
    parameters = (whole.of(Step(0, "train")) / "unet/diffusion_pytorch_model.safetensors").stat().st_size // 4
    for g in range(-1, 3):
        folder = whole.generation(g)
        for name, foreseen in generation_bytes(config, source, g, parameters).items():
            used = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
            assert 0.4 * foreseen < used < 1.1 * foreseen + 3000, (g, name, used, foreseen)
    used = status.inspect(whole.run)["bytes"]
    assert used["total"] == sum(path.stat().st_size for path in whole.run.rglob("*") if path.is_file())
    assert {"real", "selected", "weights", "samples", "features", "metrics", "checkpoints"} < used.keys()
    assert "on disk " in status.table(status.inspect(whole.run))
    digits = source_of(tiny(tmp_path))
    grown = [describe_disk(tiny(tmp_path, f"loop.paradigm={p}"), digits) for p in ("replace", "accumulate")]
    assert grown[0][-1] != grown[1][-1]
    nowhere = tiny(tmp_path, "data.source=/nowhere")
    assert "not known" in describe_disk(nowhere, None)[0]


@pytest.mark.usefixtures("forked_arms")
def test_a_sweeps_leader_keeps_all_until_the_others_have_it(tmp_path):
    path = tiny_file(tmp_path, *LITTLE, *KEEP, "generations=2", "name=grid", of=VECTORS)
    with path.open("a") as file:
        file.write("sweep: {jobs: 1, grid: {selection.strategy: [random, greedy]}}\n")
    sweep.run(path, [], lambda: False)
    for arm in ("random", "greedy"):
        removed = manifest.removed(tmp_path / "runs" / "grid" / arm / "generation_0000" / "samples")
        assert len(removed) == 5


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """A sweep of two arms that share generation 0, and what an array task of it and its last job do."""
    path = tiny_file(tmp_path, *LITTLE, *KEEP, "generations=2", "name=grid", of=VECTORS)
    with path.open("a") as file:
        file.write("sweep: {jobs: 1, grid: {selection.strategy: [random, greedy]}}\n")
    monkeypatch.setattr(process, "StopFlag", lambda: bool)
    runs = tmp_path / "runs" / "grid"

    def task(index, shared=False):
        arm_command(path, index, shared=shared)

    def removed():
        return [len(manifest.removed(runs / arm / "generation_0000" / "samples")) for arm in ("random", "greedy")]

    return task, lambda: conclude_command(path), removed, path


def test_a_leader_that_is_an_array_task_keeps_all_until_the_last_job(arms):
    """Even where it is finished, and started again, before the arm that takes its folders begins."""
    task, conclude, removed, _ = arms
    task(0, shared=True)
    task(0)
    task(0)
    assert removed() == [0, 0]
    with pytest.raises(Failed, match="1 of 2 runs did not finish: greedy"):
        conclude()
    assert removed() == [0, 0]
    task(1)
    assert removed() == [0, 5]
    conclude()
    assert removed() == [5, 5]


def test_an_arm_that_is_added_later_makes_itself_what_its_leader_let_go(arms, tmp_path):
    task, conclude, removed, path = arms
    assert removed() == [0, 0]
    task(0)
    task(1)
    conclude()
    before = sealed_bytes_there(Layout(tmp_path / "runs" / "grid" / "greedy"))
    text = path.read_text()
    path.write_text(text.replace("[random, greedy]", "[random, greedy, threshold-decay]"))
    task(2)
    added = Layout(tmp_path / "runs" / "grid" / "threshold-decay")
    assert status.inspect(added.run)["status"] == "finished"
    after = sealed_bytes_there(added)
    shared = [name for name in before if name.startswith(("real", "generation_0000"))]
    assert len(shared) > 10
    assert all(after[name] == before[name] for name in shared)
