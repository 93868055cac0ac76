"""Forks: the shared generations are another run's, later ones are those of a run with the new configuration."""

import os
import shutil
import signal

import pytest
import yaml
from loops import VECTORS, command, sealed_bytes, tiny

from entroloop.data.errors import UserError
from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.store import manifest
from entroloop.data.world import World
from entroloop.eval.report.progress import loss_curves
from entroloop.eval.report.runs import read_run
from entroloop.launcher import config as configuration
from entroloop.launcher import sweep
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.fork import forked
from entroloop.launcher.run.resume import open_run

BASE = {**VECTORS, "generations": 3}
CHANGED = ("selection.strategy=random", "train.lr=0.002", "seed=5")


def base(folder, *overrides):
    return tiny(folder, *overrides, of=BASE)


def run(config):
    runner.run(config, World(), lambda: False)
    return Layout(config.run_folder)


@pytest.fixture(scope="module")
def source(once):
    """A finished run of three generations. Read only."""
    return Layout(once("forked", lambda folder: run(base(folder))) / "tiny")


def fork(source, folder, generation, *overrides):
    """Forks a run into `folder` and opens it."""
    config = forked(base(folder, "name=fork", *overrides), source.run, generation)
    return config, open_run(config)


def shared(layout, generation):
    return {
        name: content
        for name, content in sealed_bytes(layout.run).items()
        if name.startswith("real") or int(name[11:15]) <= generation
    }


@pytest.mark.slow
def test_the_command_links_what_is_shared_and_the_run_goes_on_by_the_new_configuration(source, tmp_path):
    shutil.copytree(source.run, tmp_path / "tiny")
    made = command("fork", tmp_path / "tiny", "--generation", "1", "other", *CHANGED)
    assert made.returncode == 0, made.stderr
    layout = Layout(tmp_path / "other")
    assert f"entroloop run {layout.config}" in made.stdout
    linked = layout.of(Step(1, "train")) / manifest.MANIFEST
    assert os.path.samefile(linked, tmp_path / "tiny" / "generation_0001" / "weights" / manifest.MANIFEST)
    assert not layout.generation(2).exists()
    shutil.rmtree(tmp_path / "tiny")  # no longer needed
    went_on = command("run", layout.config)
    assert went_on.returncode == 0, went_on.stderr
    assert went_on.stdout.startswith("generation 2")
    assert shared(layout, 1) == shared(source, 1)
    assert sealed_bytes(layout.run) != sealed_bytes(source.run)
    verified = command("verify", layout.run)
    assert verified.returncode == 0, verified.stderr
    assert command("run", layout.config, "generations=4").returncode == 0


@pytest.mark.slow
def test_a_fork_without_a_change_gives_the_bytes_of_the_other_run(source, tmp_path):
    config, layout = fork(source, tmp_path, 0)
    run(config)
    assert sealed_bytes(layout.run) == sealed_bytes(source.run)


@pytest.mark.slow
def test_a_fork_of_a_fork_keeps_the_configuration_of_each_generation(source, tmp_path):
    config, layout = fork(source, tmp_path, 0, *CHANGED)
    run(config)
    again = forked(base(tmp_path, "name=again", "train.lr=0.004"), layout.run, 1)
    assert [again.at(g).train.lr for g in (-1, 0, 1, 2)] == [0.001, 0.001, 0.002, 0.004]
    second = run(again)
    assert shared(second, 0) == shared(source, 0)
    assert shared(second, 1) == shared(layout, 1)
    assert command("verify", second.run).returncode == 0
    earlier = forked(base(tmp_path, "name=earlier", "train.lr=0.004"), layout.run, 0)
    assert [earlier.at(g).train.lr for g in (0, 1)] == [0.001, 0.004]


def test_another_seed_leaves_the_real_training_set_as_it_is(source, tmp_path):
    config, layout = fork(source, tmp_path, 1, "seed=5", "loop.paradigm=accumulate-subsample")
    before = Context(base(source.run.parent), source, World()).split
    assert (Context(config, layout, World()).split.training == before.training).all()


def test_keys_that_decide_later_generations_may_change_until_they_are_sealed(source, tmp_path):
    config, layout = fork(source, tmp_path, 1)
    changed = configuration.load(layout.config, ["train.lr=0.002", "generations=4"])
    open_run(changed)
    assert configuration.load(layout.config).train.lr == 0.002
    with pytest.raises(UserError, match=r"forked from generation 1 of .* there, from no run here"):
        open_run(config.model_copy(update={"forked_from": type(config.forked_from)()}))


@pytest.mark.parametrize("damage", ["another run's", "missing"])
def test_resuming_and_verifying_check_the_shared_generations(source, tmp_path, damage):
    config, layout = fork(source, tmp_path, 1)
    folder = layout.of(Step(1, "evaluate"))
    shutil.rmtree(folder)
    if damage == "another run's":  # sealed by the same recipe, with another content
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("{}\n")
        old = manifest.read(source.of(Step(1, "evaluate")))
        manifest.seal(folder, "metrics", old.count, ["metrics.jsonl"], made_from=old.made_from)
    with pytest.raises(UserError, match="forked"):
        run(config)
    verified = command("verify", layout.run)
    assert verified.returncode == 2
    assert "forked" in verified.stderr


@pytest.mark.parametrize("at", ["run", "generation"])
@pytest.mark.parametrize("damage", ["cut", "resealed", "missing"])
def test_verify_names_a_damaged_seal_of_a_fork_once(source, tmp_path, damage, at, monkeypatch):
    _, layout = fork(source, tmp_path, 1)
    step = Step(0, "train")  # its seal is an input of other folders and one of those forked
    path = layout.of(step) / manifest.MANIFEST
    sealed = manifest.read(path.parent)
    path.unlink()
    if damage == "cut":
        path.write_bytes(b"{")
    elif damage == "resealed":
        manifest.seal(path.parent, sealed.kind, sealed.count + 1, sealed.files, made_from=sealed.made_from)
    monkeypatch.chdir(layout.run if at == "run" else layout.generation(0))
    verified = command("verify", "." if at == "generation" else "../fork")
    assert verified.returncode == 2
    assert verified.stderr.count("\n") == 1, verified.stderr
    assert "generation_0000/weights" in verified.stderr or verified.stderr.startswith("weights/manifest.json: damaged")


def test_verify_names_every_lost_folder_of_a_fork(source, tmp_path):
    _, layout = fork(source, tmp_path, 1)
    lost = [layout.of(Step(g, "evaluate")) for g in (0, 1)]  # no other folder was made from them
    for folder in lost:
        shutil.rmtree(folder)
    lines = command("verify", layout.run).stderr.splitlines()
    assert lines == [f"{folder}: not sealed, but {layout.run} was forked with it" for folder in lost]


def test_a_changed_configuration_of_the_other_run_is_found(source, tmp_path):
    _, layout = fork(source, tmp_path, 1)
    values = yaml.safe_load(layout.config.read_text())
    values["forked_from"]["config"]["train"]["lr"] = 0.5
    layout.config.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"forked_from\.config"):
        open_run(configuration.load(layout.config))


REFUSED = {
    "data.heldout=31": "data.heldout is 48 there, 31 here",
    "data.size=40": "data.size is 48 there, 40 here",
    "data.split_seed=4": "data.split_seed",
    "evaluation.encoders=[pixel, inception]": "encoders is pixel there, pixel, inception here",
    "loop.candidates=3": "loop.candidates=3: generation 1 has 96 samples",
    "train.labels=true": "train.labels=true",
    "generations=2": "generations=2: generation 2 is the first new one",
}


@pytest.mark.parametrize(("override", "line"), REFUSED.items(), ids=REFUSED)
def test_what_the_next_generation_cannot_go_on_with_is_refused(source, tmp_path, override, line):
    with pytest.raises(UserError) as caught:
        fork(source, tmp_path, 1, override)
    assert line in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (("train.warm_start=true",), ("train.warm_start=true", "network.width=20"), "network.width is 16 there"),
        (("loop.fresh.share=0.25",), ("loop.fresh.share=0.05",), "loop.fresh.share"),
        (("keep.samples=needed", "keep.features=needed", "sample.shard_size=16"), (), "removed by keep"),
    ],
)
def test_what_depends_on_the_other_run_is_refused(tmp_path, before, after, line):
    layout = run(base(tmp_path, *before))
    with pytest.raises(UserError, match=line):
        fork(layout, tmp_path, 1, *after)
    if after:
        fork(layout, tmp_path, 1, *before)


def test_the_report_shows_the_loss_of_shared_generations_while_the_other_run_is_there(source, tmp_path):
    shutil.copytree(source.run, tmp_path / "tiny")
    other = Layout(tmp_path / "tiny")
    _, first = fork(other, tmp_path, 1)
    second = open_run(forked(base(tmp_path, "name=second"), first.run, 0))
    curves = loss_curves(read_run(other.run))
    assert set(curves) == {0, 1, 2}
    for layout, last in ((first, 1), (second, 0)):
        assert loss_curves(read_run(layout.run)) == {g: curves[g] for g in range(last + 1)}
    shutil.rmtree(other.run)
    assert loss_curves(read_run(first.run)) == {}


def test_a_generation_that_is_not_sealed_cannot_be_forked(source, tmp_path):
    with pytest.raises(UserError, match="has not sealed generation 3 select"):
        fork(source, tmp_path, 3, "generations=6")


def test_an_interrupted_fork_leaves_no_run(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fork(source, tmp_path, 1)
    assert not list(tmp_path.iterdir())
    _, layout = fork(source, tmp_path, 1)
    assert manifest.is_sealed(layout.of(PREPARE))


def test_a_fork_takes_what_a_killed_one_left_with_it(source, tmp_path):
    child = os.fork()
    if child == 0:
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        try:
            fork(source, tmp_path, 1)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    fork(source, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["fork"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_arms")
def test_every_run_of_a_sweep_can_be_a_fork(source, tmp_path):
    path = tmp_path / "grid.yaml"
    grid = {"fork": f"{source.run}@1", "grid": {"selection.strategy": ["random", "greedy"]}}
    path.write_text(yaml.safe_dump({**BASE, "folder": str(tmp_path), "name": "grid", "sweep": grid}))
    sweep.run(path, [], lambda: False)
    random, greedy = (Layout(tmp_path / "grid" / name) for name in ("random", "greedy"))
    assert sealed_bytes(greedy.run) == sealed_bytes(source.run)
    assert shared(random, 1) == shared(source, 1)
    assert os.path.samefile(*(one.of(Step(1, "train")) / manifest.MANIFEST for one in (random, source)))
    before = sealed_bytes(random.run)
    sweep.run(path, [], lambda: False)
    assert sealed_bytes(random.run) == before


@pytest.mark.parametrize("text", ["runs/a", "@2", "runs/a@", "runs/a@two"])
def test_a_sweep_names_the_form_of_its_fork(source, tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**BASE, "folder": str(tmp_path), "sweep": {"grid": {"seed": [1]}, "fork": text}}))
    with pytest.raises(UserError, match="RUN@k"):
        sweep.arms_of(path, [])
