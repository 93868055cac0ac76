"""When checkpoints come, and the thread that writes them while training goes on."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from test_ddp import folder as folder  # a fixture
from test_ddp import job, launched
from thread_world import on_threads

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.store.dataset import Dataset
from entroloop.data.streams.resident import Resident
from entroloop.data.world import World
from entroloop.trainer import checkpoint, saver
from entroloop.trainer import train as loop
from entroloop.trainer.saver import Saver
from entroloop.trainer.train_config import TrainConfig

WRITE = checkpoint.save


def names(target):
    return sorted(path.name for path in (target / "checkpoints").glob("*.pt"))


def test_training_goes_on_while_a_checkpoint_is_written_as_it_was(folder, tmp_path, monkeypatch):
    data = Resident(Dataset(folder))
    loop.train(job(tmp_path / "whole", keep=100), data, World())
    steps, writers = [0], set()

    def slow(*given):
        writers.add(threading.current_thread())
        begun, end = steps[0], time.monotonic() + 60
        while steps[0] < begun + 2 and time.monotonic() < end:  # two more steps change the weights
            time.sleep(0.01)
        return WRITE(*given)

    def step():
        steps[0] += 1
        return False

    monkeypatch.setattr(checkpoint, "save", slow)
    loop.train(job(tmp_path / "slow", keep=100), data, World(), should_stop=step)
    assert threading.current_thread() not in writers
    assert not any(writer.is_alive() for writer in writers)
    assert names(tmp_path / "slow") == names(tmp_path / "whole")
    assert len(names(tmp_path / "slow")) == 9
    for name in names(tmp_path / "whole"):
        one, other = ((tmp_path / run / "checkpoints" / name).read_bytes() for run in ("whole", "slow"))
        assert one == other, name


def _slow_write(*given):
    time.sleep(0.3)
    WRITE(*given)


def test_a_stop_waits_for_its_checkpoint(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save", _slow_write)
    looks = iter([False] * 6 + [True])
    with pytest.raises(Interrupted):
        loop.train(job(tmp_path), Resident(Dataset(folder)), World(), should_stop=lambda: next(looks))
    assert names(tmp_path)[-1] == "images-000000000056.pt"


def _full_disk(world, folder, target):
    """What training raised, and at how many images seen, when the second checkpoint could not be written."""
    written: list[Any] = []

    def refused(path, seen, *given):
        if len(written) == 1:
            raise UserError(f"{path}: the disk is full")
        written.append(WRITE(path, seen, *given))

    trainers = []

    class Spy(loop.Trainer):
        def __init__(self, *given):
            super().__init__(*given)
            trainers.append(self)

    with launched(world), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", refused)
        patch.setattr(loop, "Trainer", Spy)
        try:
            loop.train(job(target, kimg=0.8), Resident(Dataset(folder)), world)
        except UserError as error:
            return str(error), trainers[0].seen


def test_a_checkpoint_that_cannot_be_written_ends_training_on_every_rank(folder, tmp_path):
    """After step 10, and said at the next exchange about stopping."""
    found = on_ranks(2, _full_disk, folder, tmp_path)
    assert found[0] == found[1]
    error, seen = found[0]
    assert error == f"{tmp_path}/checkpoints: the disk is full"
    assert seen in (15 * 8, 16 * 8)  # asked at step 16; the next checkpoint is due at step 15
    assert names(tmp_path) == ["images-000000000040.pt"]


def _kept_and_read(world, folder, target):
    with launched(world), pytest.MonkeyPatch.context() as patch:
        if not world.is_main:
            patch.setattr(checkpoint, "read", None)
            patch.setattr(torch, "load", None)
        trainer = loop.Trainer(job(target), Resident(Dataset(folder)), world)
        moments = trainer.engine.state()["exp_avg"]
        kept = len(trainer.engine.gather(trainer.averages[""])), len(moments)
        optimizer, keys = trainer.engine.adam
        held = [optimizer.state[key]["exp_avg"] for key in keys] if trainer.seen else []
        tensors = [*trainer.engine.masters, *held, *trainer.averages[""]]
        return trainer.seen, kept, [x.detach().numpy().copy() for x in tensors]


def test_only_rank_0_reads_a_checkpoint_and_keeps_whole_tensors(folder, tmp_path):
    looks = iter([False] * 6 + [True])
    with pytest.raises(Interrupted):
        loop.train(job(tmp_path), Resident(Dataset(folder)), World(), should_stop=lambda: next(looks))
    state = checkpoint.read(tmp_path / "checkpoints" / "images-000000000056.pt")
    parts = (state["engine"]["weights"], state["engine"]["exp_avg"], state["averages"][""])
    expected = [value.numpy() for part in parts for value in part.values()]
    (seen, kept, first), (also_seen, nothing, second) = on_ranks(2, _kept_and_read, folder, tmp_path)
    assert (seen, also_seen) == (56, 56)
    assert (kept, nothing) == ((len(expected) // 3,) * 2, (0, 0))
    for values in (first, second):
        assert all(map(lambda one, other: (one == other).all(), values, expected))


def read_bytes():
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_checkpoint_is_read_once(tmp_path):
    path = checkpoint.save(tmp_path, 8, {"seen": 8, "weights": torch.arange(3e6)}, keep=1)
    before = read_bytes()
    found = checkpoint.read(path)
    assert path.stat().st_size <= read_bytes() - before < 1.1 * path.stat().st_size
    assert torch.equal(found["weights"], torch.arange(3e6))


def _due(world, config, apart, told):
    """(stop, due) after each of 24 steps, with the times and signals of this rank alone; and the exchanges."""
    this = Saver(Path("unused"), config, world)
    this._last -= apart
    return [this.due(step, lambda: told) for step in range(1, 25)], world.traffic.exchanges


def test_ranks_agree_in_the_exchange_about_stopping():
    """One rank's clock, or signal, counts for all."""
    config = TrainConfig(batch=10, kimg=1, checkpoint_kimg=0.05)
    for apart, told in [(0, False), (saver.APART, False), (0, True)]:
        mine = [(config, 0, False), (config, apart, told)]
        (first, exchanges), (second, _) = on_threads(2, _due, per_rank=mine)
        assert first == second
        assert exchanges == 3
        for step, (stop, due) in enumerate(first, 1):
            assert stop == (told and step % 8 == 0)
            assert due == (step % 5 == 0 or (apart > 0 and step % 8 == 0))


def test_without_a_bound_checkpoints_are_minutes_apart(folder, tmp_path, monkeypatch):
    looks = iter(range(100))

    def late():
        return 40.0 * next(looks)  # seconds; asked at the beginning, at every step, and at every checkpoint

    monkeypatch.setattr(saver, "time", type("Clock", (), {"monotonic": staticmethod(late)}))
    loop.train(job(tmp_path, checkpoint_kimg=None, keep=100), Resident(Dataset(folder)), World())
    assert names(tmp_path) == [f"images-{8 * step:012d}.pt" for step in (8, 16, 24, 32, 40, 48)]
