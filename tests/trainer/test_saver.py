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


@pytest.mark.slow
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


def _stops(world, told):
    """Whether each of 24 steps is the last, with the signals of this rank alone; and the exchanges."""
    config = TrainConfig(batch=10, kimg=1, checkpoint_kimg=0.05)
    this = Saver(Path("unused"), config, world)
    return [this.due(step, lambda: told)[0] for step in range(1, 25)], world.traffic.exchanges


def test_a_signal_of_one_rank_counts_for_all_at_the_next_exchange():
    for told in (False, True):
        (first, exchanges), (second, _) = on_threads(2, _stops, per_rank=[(False,), (told,)])
        assert first == second == [told and step % 8 == 0 for step in range(1, 25)]
        assert exchanges == 3


class Clock:
    """A clock per thread."""

    def __init__(self) -> None:
        self._own = threading.local()

    def set(self, now):
        self._own.now = now

    def monotonic(self):
        return self._own.now


def _checkpoints(world, clock, now, seconds, first=0, kimg=None):
    """The steps after which a checkpoint came, and the exchanges.

    now      this rank's clock at the start
    seconds  that each step takes on this rank
    first    steps done before
    """
    clock.set(now)
    this = Saver(Path("unused"), TrainConfig(batch=10, kimg=1, checkpoint_kimg=kimg), world, 10 * first)
    found = []
    for step, taken in enumerate(seconds, first + 1):
        now += taken
        clock.set(now)
        if this.due(step, lambda: False)[1]:
            this.start(10 * step, {}, lambda: None)
            found.append(step)
    return found, world.traffic.exchanges


FAST, SLOW = 0.5, 1.0  # seconds per step
CASES = {
    "the slower rank decides": ([FAST] * 1000, [SLOW] * 1000, {}, [300, 600, 900]),
    "from the step at which it resumed": ([FAST] * 1000, [SLOW] * 1000, {"first": 77}, [377, 677, 977]),
    "the first steps do not count": ([100.0, *[FAST] * 1000], [30.0, *[SLOW] * 1000], {}, [300, 600, 900]),
    "at most checkpoint_kimg": ([FAST] * 500, [SLOW] * 500, {"kimg": 2}, [200, 400]),
    "a speed that changes little changes nothing": ([FAST] * 1000, [SLOW] * 500 + [1.6] * 500, {}, [300, 600, 900]),
    "nor does a pause": ([FAST] * 1000, [SLOW] * 500 + [3600.0] + [SLOW] * 499, {}, [300, 600, 900]),
    "slow steps": ([FAST] * 30, [60.0] * 30, {}, [8, 16, 21, 26]),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_whose_clocks_differ_choose_the_same_steps_in_the_exchange_about_stopping(case, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(saver, "time", clock)
    monkeypatch.setattr(checkpoint, "save", lambda *_: None)
    first, second, options, expected = CASES[case]
    done, kimg = options.get("first", 0), options.get("kimg")
    mine = [(clock, 1e6, first, done, kimg), (clock, 5.0, second, done, kimg)]
    (one, exchanges), (other, _) = on_threads(2, _checkpoints, per_rank=mine)
    assert one == other == expected
    assert exchanges == (done + len(first)) // 8 - done // 8


@pytest.mark.parametrize("after", [0.1, 4.0])
def test_a_speed_that_changes_much_changes_the_steps(after, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(saver, "time", clock)
    monkeypatch.setattr(checkpoint, "save", lambda *_: None)
    found, _ = _checkpoints(World(), clock, 0.0, [SLOW] * 700 + [after] * 12_000)
    assert found[:2] == [300, 600]
    assert saver.APART / 2 <= after * (found[-1] - found[-2]) <= 2 * saver.APART


def test_without_a_bound_checkpoints_are_minutes_apart_and_change_no_weight(folder, tmp_path, monkeypatch):
    def trained(name):
        loop.train(job(tmp_path / name, checkpoint_kimg=None, keep=100), Resident(Dataset(folder)), World())
        return (tmp_path / name / "weights/unet/diffusion_pytorch_model.safetensors").read_bytes()

    fast = trained("fast")
    looks = iter(range(200))

    def late():
        return 40.0 * next(looks)  # seconds; asked at the beginning and after every step

    monkeypatch.setattr(saver, "time", type("Clock", (), {"monotonic": staticmethod(late)}))
    assert trained("slow") == fast
    assert names(tmp_path / "fast") == []
    assert names(tmp_path / "slow") == [f"images-{8 * step:012d}.pt" for step in (8, 16, 24, 32, 40, 48)]
