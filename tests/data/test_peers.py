"""Ranks that are slow are waited for without a limit; a rank that hangs is named, and ends those that wait for it."""

import datetime
import os
import re
import signal
import socket
import threading
import time

import forked
import pytest
import torch
from loops import VECTORS, tiny_file

from entroloop.data import peers, rendezvous
from entroloop.data.errors import Failed
from entroloop.data.runfolder import Layout, Step
from entroloop.data.world import join
from entroloop.launcher import process, status

pytestmark = pytest.mark.slow


def rank_of_two(rank, port, limit, silence, work, *args):
    """For a forked process: joins a group of two whose exchanges may take `limit` s, and calls `work(world, *args)`."""
    torch.set_num_threads(1)
    peers.BEAT, peers.SAY = 0.1, 0.5
    store = rendezvous.meet("127.0.0.1", port, rank, 2, serves=rank == 0)
    world = join(
        rank, 2, device=torch.device("cpu"), store=store, timeout=datetime.timedelta(seconds=limit), silence=silence
    )
    work(world, *args)


def started(limit, silence, work, *args):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [forked.Forked(rank_of_two, rank, port, limit, silence, work, *args, merged=True) for rank in (0, 1)]


def one_is_slow(world, slow):
    def work():
        time.sleep(1.2 if world.rank == slow else 0)
        return world.rank

    world.barrier()
    assert world.agree(work) == world.rank
    assert world.on_main(work) == 0
    work()
    world.barrier()
    work()
    assert world.gather_objects(world.rank) == [0, 1]
    print("done")


@pytest.mark.parametrize("slow", [0, 1])
def test_a_slow_rank_is_waited_for_longer_than_torch_would(slow):
    ranks = started(1, 60, one_is_slow, slow)
    assert [rank.communicate(60)[0].strip() for rank in ranks] == ["done"] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]


def one_leaves_early(world):
    world.barrier()
    time.sleep(2 if world.rank == 0 else 0)


def test_a_rank_that_has_finished_is_not_missed():
    ranks = started(60, 1, one_leaves_early)
    assert [rank.communicate(60)[0] for rank in ranks] == ["", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]


def one_stops(world, stopped, waits):
    def hook(line):
        print(f"hook: {line}", flush=True)

    with peers.before_end(hook):
        world.barrier()
        time.sleep(0.25)
        if world.rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        waits(world)


def in_a_barrier(world):
    world.barrier()


def in_an_exchange(world):
    world.all_reduce(torch.ones(3))


def at_its_own_work(world):
    time.sleep(60)


@pytest.mark.parametrize("waits", [in_a_barrier, in_an_exchange, at_its_own_work])
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_hangs_is_named_and_ends_the_other(stopped, waits):
    ranks = started(60, 1, one_stops, stopped, waits)
    other = ranks[1 - stopped]
    said = other.communicate(30)[0]
    ranks[stopped].kill()
    assert other.returncode == 1
    who = rf"rank {stopped} \(process {ranks[stopped].pid} on \S+\)"
    line = rf"rank {1 - stopped} waited for {who}, which has not answered"
    last = said.strip().splitlines()[-1]
    assert re.match(f"entroloop: {line}", last), said
    assert re.search(f"hook: {line}", said), said
    assert f"rank {1 - stopped} waits for rank {stopped}" in said
    assert "Traceback" not in said


def one_is_killed(world, killed, waits):
    world.barrier()
    time.sleep(0.25)
    if world.rank == killed:
        os.kill(os.getpid(), signal.SIGKILL)
    waits(world)


@pytest.mark.parametrize("waits", [in_a_barrier, at_its_own_work])
def test_a_killed_rank_of_this_machine_ends_the_other_at_once(waits):
    ranks = started(60, 600, one_is_killed, 1, waits)
    said = ranks[0].communicate(20)[0]
    assert ranks[0].returncode == 1
    assert re.match(rf"entroloop: rank 1 \(process {ranks[1].pid} on \S+\) has ended", said), said


def one_leaves_and_one_waits(world):
    world.barrier()
    if world.rank == 0:
        with pytest.raises(Failed, match="rank 1 has ended"):
            world.barrier()


def test_a_rank_that_leaves_is_not_waited_for():
    ranks = started(60, 600, one_leaves_and_one_waits)
    assert [rank.communicate(20)[0] for rank in ranks] == ["", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]


def one_comes_late(world):
    time.sleep(2 * world.rank)
    with pytest.raises(Failed, match=r"another rank (did not come to|ended during) a reduction"):
        world.all_reduce(torch.ones(3))
    os._exit(0)


def test_a_rank_that_lives_and_does_not_come_is_one_line():
    ranks = started(1, 60, one_comes_late)
    said = [rank.communicate(60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert not any("Traceback" in text for text in said)


def test_a_run_whose_rank_hangs_is_failed_and_keeps_no_lease(tmp_path):
    config = tiny_file(tmp_path, "generations=1", "train.kimg=1000", of=VECTORS)
    ranks = forked.ranks(2, "run", config, merged=True, ENTROLOOP_PEER_SECONDS="2")
    layout = Layout(tmp_path / "runs" / "tiny")
    end = time.monotonic() + 60
    while not layout.leases(Step(0, "train")) and time.monotonic() < end:
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGSTOP)
    said = ranks[0].communicate(60)[0]
    ranks[1].kill()
    assert ranks[0].returncode == 1
    assert "entroloop: rank 0 waited for rank 1 (" in said
    found = status.inspect(layout.run)
    assert found["status"] == "failed"
    assert found["reason"].startswith("rank 0 waited for rank 1 (")
    assert not layout.all_leases()


def one_leaves_late_and_both_hear_ctrl_c_twice(world):
    process.StopFlag()
    os.kill(os.getpid(), signal.SIGINT)
    if world.rank == 1:
        time.sleep(2.5)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()  # rank 0 waits at its end for rank 1


def test_ctrl_c_at_the_end_of_a_rank_leaves_no_traceback():
    ends = [rank.result(60) for rank in started(60, 60, one_leaves_late_and_both_hear_ctrl_c_twice)]
    assert "Traceback" not in ends[0].stdout
