"""Two attempts on one run: a sealed step is never done again, and an attempt that lost its lease writes no more."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from exported import MLP, export
from loops import POINTS, sealed_bytes, tiny
from thread_world import on_threads

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.features import blocks as features
from entroloop.data.features.encoder import load_encoder
from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import write_index
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.data.world import World
from entroloop.launcher import __main__ as program
from entroloop.launcher import config as configuration
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.lease import InUse, Lease, LeaseLost
from entroloop.trainer import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_owners")]

TRAIN = Step(0, "train")


def points(folder, *overrides):
    return tiny(folder, "generations=1", *overrides, of=POINTS)


def run(config, until=None):
    runner.run(config, World(), lambda: False, until=until)
    return Layout(config.run_folder)


def test_a_step_that_was_sealed_between_its_choice_and_its_lease_is_left_alone(tmp_path):
    config = points(tmp_path)
    layout = run(config, until=TRAIN)
    times = {path: path.stat().st_mtime_ns for path in layout.of(TRAIN).rglob("*")}
    before = layout.stats(0).read_bytes()
    runner.run_step(Context(config, layout, World(), lambda: False), TRAIN)
    assert {path: path.stat().st_mtime_ns for path in layout.of(TRAIN).rglob("*")} == times
    assert layout.stats(0).read_bytes() == before
    assert not layout.lease(TRAIN).exists()


def test_ranks_that_see_a_seal_at_different_times_stay_in_step(tmp_path, monkeypatch):
    config = points(tmp_path)
    layout = run(config, until=TRAIN)
    really, late = manifest.is_sealed, threading.local()
    monkeypatch.setattr(manifest, "is_sealed", lambda folder: not hasattr(late, "here") and really(folder))

    def single(world):
        if world.rank == 1:
            late.here = True
        runner.run_single(config, world, lambda: False, TRAIN, None)

    before = layout.stats(0).read_bytes()
    on_threads(2, single)
    assert layout.stats(0).read_bytes() == before


def _state(layout):
    return json.loads((layout.run / "state.json").read_text())["status"]


def test_an_attempt_that_meets_another_one_leaves_the_state_to_it(tmp_path):
    config = points(tmp_path)
    layout = run(config, until=PREPARE)
    with Lease(layout.lease(Step(0, "select")), "select"), pytest.raises(InUse, match="in use by process"):
        run(config)
    assert _state(layout) == "finished"


def _train_and_freeze(path):
    """For a forked child: runs the command, which freezes as it begins to save its third checkpoint."""
    torch.set_num_threads(1)
    save, saves = checkpoint.save, []

    def freezing(*args):
        saves.append(args)
        if len(saves) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return save(*args)

    checkpoint.save, code = freezing, 1
    try:
        program.main(["run", str(path)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def test_a_frozen_owner_that_was_taken_over_stops_with_75_and_changes_nothing(tmp_path):
    config = points(tmp_path / "runs", "train.checkpoint_kimg=0.08")
    layout, path = Layout(config.run_folder), tmp_path / "points.yaml"
    path.write_bytes(configuration.dump(config))
    owner = os.fork()
    if owner == 0:
        _train_and_freeze(path)
    assert os.WIFSTOPPED(os.waitpid(owner, os.WUNTRACED)[1])
    assert not manifest.is_sealed(layout.of(TRAIN))
    run(config)
    sealed, state = sealed_bytes(layout.run), (layout.run / "state.json").read_bytes()
    os.kill(owner, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(owner, 0)[1]) == 75
    assert sealed_bytes(layout.run) == sealed
    assert (layout.run / "state.json").read_bytes() == state
    assert all(manifest.problems(path.parent) == [] for path in layout.run.rglob(manifest.MANIFEST))


def test_a_run_that_is_moved_while_it_trains_ends_with_2_and_leaves_nothing_at_the_old_place(tmp_path):
    config = points(tmp_path / "runs", "train.checkpoint_kimg=0.08")

    def moved():
        if config.run_folder.exists() and any(Layout(config.run_folder).checkpoints(0).glob("images-*")):
            os.rename(tmp_path / "runs", tmp_path / "moved")
        return False

    with pytest.raises(UserError, match=r"moved or removed during generation 0 train: .* the folder's new place$"):
        runner.run(config, World(), moved)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    whole = run(points(tmp_path / "other", "train.checkpoint_kimg=0.08"))
    assert sealed_bytes(run(points(tmp_path / "moved")).run) == sealed_bytes(whole.run)


def test_the_heartbeat_and_every_writer_notice_a_lease_that_was_lost(tmp_path):
    with Lease(tmp_path / ".lease", "x") as held, files.fenced(held.check):
        files.replace(tmp_path / "mine", lambda file: file.write(b"mine"))
        (tmp_path / ".lease").write_text(json.dumps({"token": "theirs", "counter": 1}))
        with pytest.raises(LeaseLost, match="took over x"):
            files.replace(tmp_path / "mine", lambda file: file.write(b"late"))
        with pytest.raises(LeaseLost):
            files.add_line(tmp_path / "lines", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lease", "mine"]
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert json.loads((tmp_path / ".lease").read_text())["token"] == "theirs"


def test_a_heartbeat_alone_notices_it(tmp_path):
    with Lease(tmp_path / ".lease", "x") as held:
        assert not held.lost
        (tmp_path / ".lease").unlink()
        end = time.monotonic() + 10
        while not held.lost and time.monotonic() < end:
            time.sleep(0.01)
        assert held.lost
        assert not (tmp_path / ".lease").exists()


def _samples(folder, number):
    write_shard(folder, number, np.zeros((2, 3), np.float32), None, Provenance.sampled(0, 0, 2), first_key=2 * number)


@pytest.fixture
def dataset(tmp_path):
    _samples(tmp_path / "generation" / "samples", 0)
    seal_dataset(tmp_path / "generation" / "samples")
    return Dataset(tmp_path / "generation" / "samples")


def _index(folder, dataset, rows):
    origins = np.stack([np.zeros_like(rows), rows], axis=1)
    where = Provenance.sampled(0, 0, len(rows))
    write_index(folder, [dataset], origins, where, None, run=folder.parent.parent, shard_size=1, about={}, made_from={})


def test_no_writer_adds_to_a_sealed_folder_or_changes_it(tmp_path, dataset):
    encoder = {"pixel": load_encoder("pixel", (3,))}
    weights, blocks, index = (tmp_path / "generation" / name for name in ("weights", "features", "index"))
    export(weights, config=MLP, shape=(3,), num_classes=0)
    features.write_blocks(encoder, blocks, 0, dataset.all())
    features.seal_blocks(len(dataset), 1, encoder, blocks, made_from={})
    _index(index, dataset, np.arange(1))
    sealed = sealed_bytes(tmp_path)
    late = [
        lambda: export(weights, config=MLP, shape=(3,), num_classes=0, seed=1),
        lambda: _samples(dataset.folder, 1),
        lambda: features.write_blocks(encoder, blocks, 1, dataset.all()),
        lambda: _index(index, dataset, np.arange(2)),
        lambda: manifest.add(weights, "metrics.jsonl", lambda file: file.write(b"{}")),
    ]
    there = sorted(tmp_path.rglob("*"))
    for write in late:
        with pytest.raises(UserError, match="is sealed and must stay as it is"):
            write()
    _samples(dataset.folder, 0)  # what is there already is no change
    features.write_blocks(encoder, blocks, 0, dataset.all())
    assert sealed_bytes(tmp_path) == sealed
    assert sorted(tmp_path.rglob("*")) == there


def test_weights_of_an_unsealed_export_are_not_replaced(tmp_path):
    export(tmp_path / "a", config=MLP, shape=(3,), num_classes=0, seed=1)
    (tmp_path / "a" / manifest.MANIFEST).unlink()
    first = (tmp_path / "a" / "mlp.safetensors").read_bytes()
    export(tmp_path / "a", config=MLP, shape=(3,), num_classes=0, seed=2)
    assert (tmp_path / "a" / "mlp.safetensors").read_bytes() == first
    assert manifest.problems(tmp_path / "a") == []
