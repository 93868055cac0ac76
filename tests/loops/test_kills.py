"""A campaign of `kill -9` at random file events: no sealed byte differs, and the last attempt leaves nothing over."""

import os
import random
import signal
import socket
import sys
import time
from types import SimpleNamespace
from typing import Any

import forked
import pytest
from loops import VECTORS, sealed_bytes, tiny_file

from entroloop.launcher import __main__ as program
from entroloop.launcher import sweep

SECONDS = 10  # that each kind of command is killed over and over
EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
SHORT = ("generations=1", "train.checkpoint_kimg=0.16")


class _Fork:
    """As `subprocess.Popen` of `python -m entroloop.launcher …`, without starting Python."""

    def __init__(self, command, *, stdout, preexec_fn, **_):
        self.returncode, self._pid = None, os.fork()
        if self._pid == 0:
            preexec_fn()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            try:
                program.main(command[3:])
            except SystemExit as end:
                os._exit(int(end.code or 0))
            os._exit(70)

    def poll(self):
        if self.returncode is None:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def send_signal(self, number):
        os.kill(self._pid, number)

    def wait(self, timeout):
        while self.poll() is None:
            time.sleep(0.01)


def killed(folder, number, arguments):
    """For a forked process: runs the command, and kills the process before its file event of this number in `folder`.

    A process that the command forks counts on.
    """
    left = number

    def count(event, values):
        nonlocal left
        if event not in EVENTS or not any(
            isinstance(v, str | os.PathLike) and str(v).startswith(folder) for v in values
        ):
            return
        if event == "open" and not (values[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    setattr(sweep, "subprocess", SimpleNamespace(Popen=_Fork, STDOUT=None, DEVNULL=None, TimeoutExpired=TimeoutError))  # noqa: B010
    sys.argv = ["entroloop", *arguments]
    program.main(arguments)


def _start(folder, number, arguments, place):
    options: dict[str, Any] = {"merged": True, **place}
    return forked.Forked(killed, folder, number, arguments, **options)


def attempt(folder, arguments, numbers):
    """The exit status of each rank; negative for those that were killed."""
    words = [str(argument) for argument in arguments]
    size = len(numbers)
    places = [{}] if size == 1 else [
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "WORLD_SIZE": str(size)}
    ] * size  # fmt: skip
    ranks = []
    for rank, (number, place) in enumerate(zip(numbers, places, strict=True)):
        own = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} if place else {}
        ranks.append(_start(str(folder), number, words, own))
    return [(one.wait(120), one.communicate()[0]) for one in ranks]


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


NEVER = 10**9
KINDS = {
    "run": lambda folder: (["run", tiny_file(folder, *SHORT, of=VECTORS)], 1, 90),
    "two ranks": lambda folder: (["run", tiny_file(folder, *SHORT, of=VECTORS)], 2, 60),
    "sweep": lambda folder: (["sweep", tiny_file(folder, *SHORT, of=VECTORS), "sweep.grid.seed=[0,1]"], 1, 90),
    "import": lambda folder: (
        ["import", "digits", folder / "runs" / "set", "--shard-size", "200", "--workers", "1"],
        1,
        40,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_any_file_event_change_nothing_and_leave_nothing(tmp_path, kind):
    (tmp_path / "whole").mkdir()
    command, size, most = KINDS[kind](tmp_path / "whole")
    assert [status for status, _ in attempt(tmp_path / "whole", command, [NEVER] * size)] == [0] * size
    whole = tmp_path / "whole" / "runs"
    expected = sealed_bytes(whole), everything(whole)
    seed = random.randrange(2**32)
    chosen, end, chain, kills = random.Random(seed), time.monotonic() + SECONDS, 0, 0
    while not kills or time.monotonic() < end:
        folder = tmp_path / str(chain)
        folder.mkdir()
        command, size, most = KINDS[kind](folder)
        for _ in range(4):
            victim = chosen.randrange(size)
            ended = attempt(folder, command, [chosen.randint(1, most) if r == victim else NEVER for r in range(size)])
            kills += sum(status == -signal.SIGKILL for status, _ in ended)
            assert not any("Traceback" in said for _, said in ended), (seed, chain, ended)
        ended = attempt(folder, command, [NEVER] * size)
        assert [status for status, _ in ended] == [0] * size, (seed, chain, ended)
        assert sealed_bytes(folder / "runs") == expected[0], (seed, chain)
        over = set(everything(folder / "runs")) - set(expected[1])  # a kill may lose a line of stats.jsonl
        assert not over, (seed, chain, over)
        chain += 1
