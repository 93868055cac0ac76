"""Which processes are ranks, what ranks see of each other, and how waiting for ranks ends."""

import datetime
import itertools
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from entroloop.data import rendezvous
from entroloop.data.errors import Failed, Interrupted, UserError
from entroloop.data.world import World
from entroloop.launcher import process
from entroloop.launcher.process import Place, check_alone, first_host, place, world_from_environment
from entroloop.selection.exact import canary

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}
STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[1-2]",
}  # fmt: skip


def documented():
    """The rows of the table in docs/clusters.md: variables and what the docs say they mean."""
    text = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.partition("| environment |")[2].splitlines()[2:]]
    rows = list(itertools.takewhile(lambda row: len(row) > 1, rows))
    return [({}, rows[0][-1])] + [
        (dict(pair.split("=") for pair in row[0].strip("`").split()), row[-1]) for row in rows[1:]
    ]


def said(environment):
    """The same words for what the program makes of these variables."""
    try:
        found = place(environment)
    except UserError as error:
        return f"refused: {error}"
    return "alone" if found.size == 1 else f"rank {found.rank} of {found.size} at {found.address}:{found.port}"


def test_every_row_of_the_documents_table_holds():
    rows = documented()
    assert len(rows) > 20
    for environment, meaning in rows:
        if meaning.startswith("refused: "):
            assert re.match(f"refused: .*{re.escape(meaning[9:])}", said(environment)), environment
        else:
            assert said(environment) == meaning, environment


def test_every_combination_of_launchers_and_left_overs_is_a_place_or_one_line():
    """torchrun's variables first, then a step, then nobody; any of them whole, lacking one, or with one emptied."""
    groups = [TORCHRUN, STEP, {"PMI_SIZE": "2"}, {"ACCELERATE_USE_CPU": "true"}, {"SLURM_PTY_PORT": "1"}]
    variants = []
    for group in groups:
        lacking = [{k: v for k, v in group.items() if k != name} for name in group]
        empty = [{**group, name: ""} for name in group]
        variants.append([{}, group, *lacking, *empty])
    for chosen in itertools.product(*variants):
        found = said({k: v for group in chosen for k, v in group.items()})
        assert "\n" not in found
        if chosen[0] == TORCHRUN and all(chosen[1].get(name) != "" for name in process.STEP):
            assert found == "rank 1 of 4 at a:1234"
        elif chosen[0] == {} and chosen[1] == STEP and not chosen[4]:
            assert found == "rank 1 of 2 at n1:12056"
        elif not any(chosen[:3]):
            assert found == "alone"


WRONG = ["\u0661", "\uff11", "+1", " 1", "1_0", "0x1", "1.0", "9" * 30, "9" * 5000, "-", "1\n", "", " "]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("name", [*TORCHRUN, *STEP])
def test_a_number_that_is_none_is_one_line(name, value):
    of = TORCHRUN if name in TORCHRUN else STEP
    if name in ("MASTER_ADDR", "SLURM_STEP_NODELIST"):
        assert "Traceback" not in said({**of, name: value})
    else:
        assert re.fullmatch(rf"(?s)refused: environment: {name}[= ].{{0,60}}", said({**of, name: value}))


def test_the_first_host_of_a_list():
    lists = {"n1": "n1", "n[3-9],m": "n3", "n[007,9-12]": "n007", "r[1-2]n[04-05]-ib,x": "r1n04-ib", "a,b": "a"}
    assert {hosts: first_host(hosts) for hosts in lists} == lists
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        first_host("")


def test_jobs_and_steps_of_one_node_meet_at_different_ports():
    steps = [{**STEP, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in range(100) for step in range(8)]
    assert len({place(step).port for step in steps}) == 800


def test_commands_that_work_alone_refuse_to_be_ranks():
    for environment in (TORCHRUN, STEP):
        with pytest.raises(UserError, match=r"entroloop sweep works alone and was started as . ranks: start it once"):
            check_alone("sweep", "start it once", environment)
    check_alone("sweep", "start it once", {"SLURM_NTASKS": "2"})


def test_a_rank_of_a_step_sees_what_torchrun_sets(monkeypatch):
    joined = []
    monkeypatch.setattr(process, "meet", lambda *args, **options: joined.append((args, options)))
    monkeypatch.setattr(process, "join", lambda *args, **options: World(device=options["device"]))
    monkeypatch.setattr(canary, "prove", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for seen, device in ((8, "cuda:1"), (1, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        environment = {**STEP, "SLURM_LOCALID": "1"}
        assert str(world_from_environment(environment).device) == device
        expected = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": device[-1], "MASTER_ADDR": "n1"}
        assert environment.items() >= {**expected, "MASTER_PORT": "12056"}.items()
    assert joined[0][0] == ("n1", 12056, 1, 2)
    assert joined[0][1]["name"] == "7.0"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="number 3 on its machine and sees 2 devices"):
        world_from_environment({**STEP, "SLURM_LOCALID": "3"})


def test_a_card_with_inexact_products_is_refused_before_any_work(monkeypatch):
    def refuse(device):
        raise UserError(f"{device}: products are less exact")

    monkeypatch.setattr(process, "join", lambda *args, **options: World(device=options["device"]))
    monkeypatch.setattr(canary, "prove", refuse)
    with pytest.raises(UserError, match=r"^cuda:0: products"):
        world_from_environment({}, device=torch.device("cuda", 0))
    assert world_from_environment({}, device=torch.device("cpu")).device.type == "cpu"


def test_torchruns_agent_keeps_the_store():
    assert place({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}) == Place(
        1, 4, 1, "a", 1234, agent=True, name="2"
    )


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan", ""])
@pytest.mark.parametrize("name", ["ENTROLOOP_JOIN_SECONDS", "ENTROLOOP_PEER_SECONDS"])
def test_a_time_to_wait_that_is_none(name, value):
    with pytest.raises(UserError, match=rf"{name}={value}: must be a number of seconds above 0"):
        world_from_environment({name: value})


# -- meeting ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_wait_ends_and_says_for_whom_it_waited(port):
    start = time.monotonic()
    with pytest.raises(Failed, match=rf"rank 0 of 12 waited 0\.2 s at 127.0.0.1:{port} for ranks 1, .*, 8 and 3 more:"):
        rendezvous.meet("127.0.0.1", port, 0, 12, serves=True, seconds=0.2)
    with pytest.raises(Failed, match=r"rank 1 of 2 waited 0\.2 s .* for rank 0 \(.*Connection refused\)"):
        rendezvous.meet("127.0.0.1", port, 1, 2, serves=False, seconds=0.2)
    with pytest.raises(Failed, match=r"at nowhere\.invalid:\d+ for rank 0 \("):
        rendezvous.meet("nowhere.invalid", port, 1, 2, serves=False, seconds=0.2)
    assert time.monotonic() - start < 60


def test_a_port_that_is_in_use(port):
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UserError, match=rf"MASTER_PORT={port} is in use on"):
        rendezvous.meet("127.0.0.1", port, 0, 2, serves=True, seconds=5)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which only root may")
def test_a_port_that_may_not_be_opened():
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            rendezvous.meet("127.0.0.1", 80, 0, 2, serves=True, seconds=5)
        except UserError as error:
            code = 0 if "MASTER_PORT=80 cannot be opened (Permission denied) on" in str(error) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_something_else_that_listens_at_the_port_and_does_not_answer(port):
    with socket.create_server(("127.0.0.1", port)), pytest.raises(Failed, match=r"for rank 0 .* does not answer"):
        rendezvous.meet("127.0.0.1", port, 1, 2, serves=False, seconds=0.2)


def test_ranks_of_another_job_at_the_same_port_do_not_count(port):
    ranks = [(0, "7.0"), (1, "8.0")]
    failed = []

    def meet(rank, name):
        try:
            rendezvous.meet("127.0.0.1", port, rank, 2, serves=rank == 0, name=name, seconds=0.5)
        except Failed as error:
            failed.append(str(error))

    threads = [threading.Thread(target=meet, args=each) for each in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 2


def test_an_agent_keeps_the_store_for_all_ranks(port):
    agent = TCPStore("127.0.0.1", port, 2, True, datetime.timedelta(seconds=5), wait_for_workers=False)
    done = []
    threads = [
        threading.Thread(
            target=lambda r=r: done.append(rendezvous.meet("127.0.0.1", port, r, 2, serves=False, seconds=20))
        )
        for r in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    del agent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_wait(port, number, rank):
    """As rank 0, and as one for whom something that never answers listens."""
    kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    silent = None if rank == 0 else socket.create_server(("127.0.0.1", port))
    environment = {**TORCHRUN, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    try:
        stop = process.StopFlag()
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        with pytest.raises(Interrupted, match=rf"stopped while rank {rank} waited for rank {1 - rank}"):
            world_from_environment({**environment, "MASTER_PORT": str(port)}, should_stop=stop)
    finally:
        for n, handler in kept.items():
            signal.signal(n, handler)
        if silent:
            silent.close()
