"""Leases: a live owner is respected, a dead owner is replaced, and others can read the progress."""

import json
import multiprocessing
import os
import time

import pytest

from entroloop.data.errors import UserError
from entroloop.data.progress import Progress
from entroloop.launcher.run import lease
from entroloop.launcher.run.lease import Lease


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "WATCH", 0.5)


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


def _dead_pid():
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return process.pid


def write(path, **values):
    path.write_text(json.dumps({"host": os.uname().nodename, "token": "x", "counter": 7, "progress": None, **values}))


def owner(path):
    found = lease.read(path)
    assert found is not None
    return found


def test_a_dead_process_of_this_host_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "WATCH", 60)
    write(tmp_path / ".lease", pid=_dead_pid())
    start = time.monotonic()
    with Lease(tmp_path / ".lease", "x"):
        assert owner(tmp_path / ".lease")["pid"] == os.getpid()
    assert time.monotonic() - start < 10


def test_a_silent_owner_elsewhere_is_watched_then_replaced(tmp_path):
    write(tmp_path / ".lease", pid=1, host="elsewhere")
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
        write(path, pid=1, host="elsewhere", token="theirs")
    assert owner(path)["token"] == "theirs"
