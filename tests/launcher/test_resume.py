"""A changed configuration is accepted if and only if no sealed step's recipe changes. Unsealed steps start over."""

import json
import shutil

import pytest
from loops import POINTS, sealed_bytes, tiny

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.runfolder import PREPARE, Layout, Step, read_config
from entroloop.data.store import manifest
from entroloop.data.world import World
from entroloop.launcher import config as configuration
from entroloop.launcher import status
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.lease import InUse, Lease
from entroloop.launcher.run.resume import open_run

pytestmark = pytest.mark.usefixtures("quick_owners")

SELECT, TRAIN, SAMPLE, ENCODE, EVALUATE = (Step(0, p) for p in ("select", "train", "sample", "encode", "evaluate"))
ONE = {
    **POINTS,
    "generations": 1,
    "train": {"kimg": 0.16, "batch": 16, "checkpoint_kimg": 0.016, "log_kimg": 0.016},
}


def points(folder, *overrides):
    return tiny(folder, *overrides, of=ONE)


def run(config, until=None, should_stop=lambda: False):
    runner.run(config, World(), should_stop, until=until)
    return Layout(config.run_folder)


class After:
    """Says stop from the n-th time on that it is asked."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        self.left -= 1
        return self.left < 0


def test_what_decides_no_sealed_step_may_change_and_is_saved(tmp_path):
    layout = run(points(tmp_path), until=TRAIN)
    before = sealed_bytes(layout.run)
    how = ("threads=2", "train.checkpoint_kimg=7", "train.keep=5", "data.workers=2", "keep.features=needed")
    later = (*how, "sample.steps=4", "evaluation.samples=40", "generations=2", "loop.candidates=3")
    changed = points(tmp_path, *later)
    run(changed, until=TRAIN)
    assert sealed_bytes(layout.run) == before
    assert configuration.load(layout.config).settled() == changed.settled()
    with pytest.raises(
        UserError, match=r"generation 0 train is sealed by another .*: train\.lr is 0\.001 there, 0\.1 here"
    ):
        open_run(points(tmp_path, *later, "train.lr=0.1"))
    with pytest.raises(UserError, match=r"prepare is sealed by another .*: data\.heldout is 32 there, 31 here"):
        open_run(points(tmp_path, *later, "data.heldout=31"))
    assert configuration.load(layout.config).settled() == changed.settled()


def test_a_default_that_has_changed_since_changes_no_run(tmp_path, caplog):
    """The run began when another strategy and number of candidates were the default, and its file names neither."""
    caplog.set_level("WARNING")  # -q shows it too
    of = {**ONE, "selection": {"encoder": "pixel"}, "generations": 2}
    then, now = (
        configuration.compose(of, [f"folder={tmp_path}", *overrides], "points")
        for overrides in (("selection.strategy=greedy", "loop.candidates=3"), ())
    )
    layout = run(then, until=TRAIN)
    shutil.copytree(layout.run, tmp_path / "copy")
    copy = configuration.saved_with(tmp_path / "copy")
    assert (copy.selection.strategy, copy.loop.candidates) == ("greedy", 3)
    run(then, until=Step(1, "select"))
    with pytest.raises(
        UserError, match=r"loop\.candidates is 3 there, 2 here; selection\.strategy is greedy there, herd"
    ):
        open_run(now)
    assert "goes on with another configuration" not in caplog.text
    open_run(now.model_copy(update={"name": "copy"}))
    assert "copy: goes on with another configuration: loop.candidates is 3 there, 2 here; selection.st" in caplog.text


def test_fewer_generations_are_refused_once_a_step_beyond_them_is_sealed(tmp_path):
    layout = run(points(tmp_path, "generations=3"), until=SELECT)
    open_run(points(tmp_path, "generations=2"))
    (layout.generation(1) / "selected").mkdir(parents=True)
    manifest.seal(layout.generation(1) / "selected", "vectors", 0, [])
    with pytest.raises(UserError, match=r"generation 1 select is sealed .*: generations is 2 there, 1 here"):
        open_run(points(tmp_path, "generations=1"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "changed", "begun"),
    [(3, "train.lr=0.1", "checkpoints/*.pt"), (13, "sample.steps=4", "samples/*.tar")],
    ids=["train", "sample"],
)
def test_what_was_begun_with_another_configuration_starts_over(stop, changed, begun, tmp_path):
    little = ("sample.shard_size=8", "sample.batch=8")
    layout = run(points(tmp_path / "a", *little), until=SELECT)
    with pytest.raises(Interrupted):
        run(points(tmp_path / "a", *little), should_stop=After(stop))
    assert list(layout.generation(0).glob(begun))
    run(points(tmp_path / "a", *little, changed))
    fresh = run(points(tmp_path / "b", *little, changed))
    assert sealed_bytes(layout.run) == sealed_bytes(fresh.run)
    lines = [[json.loads(line) for line in one.stats(0).read_text().splitlines()] for one in (layout, fresh)]
    kimg, wanted = ([line["kimg"] for line in each if "kimg" in line] for each in lines)
    assert kimg == wanted


def test_an_import_that_was_begun_with_other_settings_starts_over(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Context, "load_encoders", lambda *_: (_ for _ in ()).throw(Interrupted("stopped")))
        with pytest.raises(Interrupted):
            run(points(tmp_path))
    layout = Layout(tmp_path / "tiny")
    assert manifest.read(layout.images).count == 120
    run(points(tmp_path, "data.limit=110"), until=PREPARE)
    assert manifest.read(layout.images).count == 110


def test_the_same_configuration_goes_on_from_what_was_begun(tmp_path):
    layout = run(points(tmp_path), until=SELECT)
    with pytest.raises(Interrupted):
        run(points(tmp_path), should_stop=After(3))
    run(points(tmp_path, "train.checkpoint_kimg=0.032"), until=TRAIN)
    kimg = [line["kimg"] for line in map(json.loads, layout.stats(0).read_text().splitlines()) if "kimg" in line]
    assert kimg == sorted(set(kimg))


def test_nobody_changes_the_configuration_of_a_step_at_work(tmp_path):
    layout = run(points(tmp_path), until=SELECT)
    saved = layout.config.read_bytes()
    for part in ("0::1", "2::4"):
        with Lease(layout.lease(TRAIN, part), "train"):
            with pytest.raises(InUse):
                open_run(points(tmp_path, "sample.steps=4"))
            assert layout.config.read_bytes() == saved
            open_run(points(tmp_path, "threads=2"))
            open_run(points(tmp_path))
    assert not layout.all_leases()


def test_of_two_first_starts_the_configuration_saved_last_is_that_of_the_run(tmp_path):
    first, second = points(tmp_path), points(tmp_path, "data.heldout=31")
    layout = open_run(first)
    open_run(second)  # before the first one prepares
    with pytest.raises(UserError, match=r"changed the configuration: data\.heldout is 31 there, 32 here"):
        runner.run_step(Context(first, layout, World()), PREPARE)
    assert not manifest.is_sealed(layout.of(PREPARE))
    run(second, until=PREPARE)
    with pytest.raises(UserError, match=r"data\.heldout is 31 there, 32 here"):  # it chose its step before that
        runner.run_step(Context(first, layout, World()), PREPARE)


def test_an_edited_copy_of_the_configuration_does_not_deceive(tmp_path):
    layout = run(points(tmp_path), until=TRAIN)
    edited = points(tmp_path, "train.lr=0.1")
    layout.config.write_bytes(configuration.dump(edited))
    with pytest.raises(
        UserError, match=r"generation 0 train is sealed by another configuration: config\.yaml was edited"
    ):
        open_run(edited)


def test_another_format_is_refused_in_one_line(tmp_path):
    layout = open_run(points(tmp_path))
    assert read_config(layout)["format"] == 1
    with pytest.raises(UserError, match=r"^tiny: format=2: is not the 1 that this version of entroloop reads$"):
        points(tmp_path, "format=2")
    text = layout.config.read_text()
    for line, said in (("format: 2\n", "format 2 is"), ("", "format of before 1 is")):
        layout.config.write_text(text.replace("format: 1\n", line))
        for reads in (open_run, lambda config: status.inspect(config.run_folder)):
            with pytest.raises(UserError, match=rf"config\.yaml: {said} not the 1 that this version") as caught:
                reads(points(tmp_path))
            assert "\n" not in str(caught.value)
