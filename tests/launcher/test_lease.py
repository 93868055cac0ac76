"""Leases: a live owner is respected, a dead owner is replaced, and others can read the progress."""

import errno
import json
import multiprocessing
import os
import threading
import time
from unittest import mock

import pytest

from entroloop.data import files, owners
from entroloop.data.errors import UserError
from entroloop.data.progress import Progress
from entroloop.launcher import status
from entroloop.launcher.run import lease
from entroloop.launcher.run.lease import Lease

pytestmark = pytest.mark.usefixtures("quick_owners")


def test_a_second_owner_is_refused_while_the_first_lives_and_welcome_after(tmp_path):
    path = tmp_path / ".lease"
    with Lease(path, "generation 0 train"):
        with (
            pytest.raises(UserError, match=f"generation 0 train is in use by process {os.getpid()}"),
            Lease(path, "generation 0 train"),
        ):
            pass
        assert path.exists()
    assert not path.exists()
    with Lease(path, "again"):
        pass


ELSEWHERE = "00000000.1.1"


def dead_process():
    """The owner's name of a process of this machine that has ended."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(owners.me)


def write(path, **values):
    lease_of = {"host": os.uname().nodename, "pid": 1, "token": "x", "counter": 7, "what": "x", "progress": None}
    path.write_text(json.dumps({**lease_of, **values}))


def owner(path):
    found = lease.read(path)
    assert found is not None
    return found


def test_a_dead_process_of_this_host_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "WATCH", 60)
    reused = f"{owners.me().rpartition('.')[0]}.1"  # the number of a living process that started at another time
    for dead in (dead_process(), reused):
        write(tmp_path / ".lease", owner=dead)
        start = time.monotonic()
        with Lease(tmp_path / ".lease", "x"):
            assert owner(tmp_path / ".lease")["pid"] == os.getpid()
        assert time.monotonic() - start < 10


WITHOUT = [{"pid": 1}, {"host": "h"}, {"token": "t"}, [], 7, None, {"pid": "x", "host": 1, "counter": {}, "token": []}]


@pytest.mark.parametrize("content", WITHOUT)
def test_a_damaged_lease_is_watched_then_replaced(tmp_path, monkeypatch, content):
    monkeypatch.setattr(owners, "WATCH", 0.1)
    path = tmp_path / ".lease"
    path.write_text(json.dumps(content))
    assert lease.read(path) is None
    assert lease.living([path]) == ({}, {path: None})
    with Lease(path, "x"):
        pass


def test_a_folder_where_a_lease_belongs_is_one_line(tmp_path):
    (tmp_path / ".lease").mkdir()
    with pytest.raises(UserError, match=r"\.lease: is a folder"), Lease(tmp_path / ".lease", "x"):
        pass
    assert lease.living([tmp_path / ".lease"]) == ({}, {})


def test_a_full_disk_leaves_no_lease_without_content(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match=r"\.lease: no space left on device"), Lease(tmp_path / ".lease", "x"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_removes_what_ended_owners_left_and_nothing_of_living_ones(tmp_path):
    generation = tmp_path / "generation_0000"
    generation.mkdir()
    dead = dead_process()
    for name, owner in {"dead": dead, "silent": ELSEWHERE, "damaged": None}.items():
        write(generation / f".lease-{name}", owner=owner)
    (generation / f".tmp-{dead}-12345678-lease").touch()
    (generation / f".tmp-{ELSEWHERE}-12345678-shard").touch()
    (generation / f".tmp-{dead}-12345678-weights" / "inner").mkdir(parents=True)
    (generation / ".tmp-0123456789ab-shard").touch()  # as earlier versions named them
    over = threading.Event()
    far = [generation / ".lease-far", generation / f".tmp-{ELSEWHERE}-87654321-shard"]

    def beat():
        while not over.wait(0.05):
            write(far[0], owner=ELSEWHERE, counter=time.time())
            far[1].touch()

    beats = threading.Thread(target=beat)
    beats.start()
    time.sleep(0.2)
    with Lease(generation / ".lease-here", "x"), files.temporary(generation / "mine") as mine:
        mine.touch()
        lease.sweep(tmp_path)
        assert set(generation.iterdir()) == {*far, generation / ".lease-here", mine}
    over.set()
    beats.join()
    assert set(generation.iterdir()) == set(far)


def test_a_silent_owner_elsewhere_is_watched_then_replaced(tmp_path):
    write(tmp_path / ".lease", owner=ELSEWHERE, host="elsewhere")
    with Lease(tmp_path / ".lease", "x"):
        assert owner(tmp_path / ".lease")["host"] != "elsewhere"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_lease_of_a_killed_writer_is_replaced(tmp_path):
    (tmp_path / ".lease").touch()
    with Lease(tmp_path / ".lease", "x"):
        pass


def test_progress_can_be_read_from_outside(tmp_path):
    with Lease(tmp_path / ".lease", "x") as held, Progress("t", 10, "img", show=False) as progress:
        held.progress = progress
        progress.advance(4)
        time.sleep(0.3)
        state = owner(tmp_path / ".lease")["progress"]
        assert (state["done"], state["total"], state["unit"]) == (4, 10, "img")


def test_a_lease_that_was_taken_over_is_not_removed_by_its_old_owner(tmp_path):
    path = tmp_path / ".lease"
    with Lease(path, "x"):
        path.unlink()
        write(path, owner=ELSEWHERE, token="theirs")
    assert owner(path)["token"] == "theirs"


@pytest.mark.slow
def test_status_says_running_only_while_a_process_lives(tmp_path):
    (tmp_path / "config.yaml").write_text("format: 1\ngenerations: 1\n")
    generation = tmp_path / "generation_0000"
    generation.mkdir()
    path = generation / ".lease-train-0-of-1"

    def seen():
        found = status.inspect(tmp_path)
        return found["status"], next(p["state"] for p in found["phases"] if p["phase"] == "train"), found["reason"]

    assert seen() == ("not begun", "pending", "")
    with Lease(path, "generation 0 train"):
        assert seen() == ("running", "running", "")
    for owner in (dead_process(), ELSEWHERE):
        write(path, owner=owner, pid=12, host="n1", what="generation 0 train")
        assert seen() == ("stopped", "pending", "process 12 on n1 was killed in generation 0 train")
    for content in ("{}", "[1]", '{"status": 7}', "{"):
        path.write_text(content)
        (tmp_path / "state.json").write_text(content)
        assert seen() == ("not begun", "pending", "")
