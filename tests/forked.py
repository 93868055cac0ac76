"""`entroloop …` in forked processes: one server per session imports the program, then forks a process per command.

A start costs a few hundredths of a CPU second instead of the seconds that the imports take. A forked process is a real
process with its own signals, exit status, environment and output. The server imports and never computes, so that a
fork loses no thread. Tests of the entry points (`python -m`, torchrun, accelerate launch) start Python instead.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import multiprocessing
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOMS = ("data", "trainer", "selection", "eval", "launcher", "slurm")
# Libraries that the program, and what it uses, import inside functions. pyarrow is missing: it starts a thread.
LATER = (
    "accelerate", "deepspeed", "diffusers.models.unets.unet_2d", "faiss", "matplotlib.pyplot", "networkx",
    "scipy.stats", "setuptools", "sklearn.cluster", "sklearn.datasets", "sklearn.manifold", "torch._dynamo",
    "torch._inductor.graph", "torch.utils.cpp_extension",
)  # fmt: skip

CONTEXT = multiprocessing.get_context("forkserver")


def _modules() -> list[str]:
    rooms = [importlib.import_module(f"entroloop.{room}") for room in ROOMS]
    inside = [m.name for room in rooms for m in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")]
    return [*inside, *LATER]


CONTEXT.set_forkserver_preload(_modules())


class Forked:
    """A function of a module in a forked process and session of its own, used as a `subprocess.Popen` of text is.

    `environment` is added to this process's own. With `merged`, stderr goes where stdout goes; `output` is that file.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        merged: bool = False,
        output: Path | None = None,
        **environment: str,
    ) -> None:
        self.args = arguments
        stem = _folder() / uuid.uuid4().hex
        out = output or Path(f"{stem}.out")
        self._outputs = (out, out if merged else Path(f"{stem}.err"))
        for path in self._outputs:
            path.touch()
        values = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process = CONTEXT.Process(
            target=_call, args=(values, os.getcwd(), self._outputs, function, arguments), daemon=False
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid
        _STARTED.append(self)
        while self.poll() is None and not _leads_its_session(self.pid):
            time.sleep(0.002)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(list(map(str, self.args)), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end, and returns what was written to stdout and stderr."""
        self.wait(timeout)
        out, err = (path.read_text() for path in self._outputs)
        return out, err

    def result(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        out, err = self.communicate(timeout)
        assert self.returncode is not None
        return subprocess.CompletedProcess(list(map(str, self.args)), self.returncode, out, err)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the process and those that it started in its session."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)


def entroloop(*arguments: object, **options: Any) -> Forked:
    """Starts the command `entroloop …`; `options` are those of `Forked`."""
    return Forked(_command, list(map(str, arguments)), **options)


def ranks(size: int, *arguments: object, **options: Any) -> list[Forked]:
    """Starts the same command on `size` ranks of one machine, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), **options}
    places = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [entroloop(*arguments, **own) for own in places]


# -- in the forked process ---------------------------------------------------------------------------------------------


def _call(
    environment: dict[str, str],
    folder: str,
    outputs: tuple[Path, Path],
    function: Callable[..., object],
    arguments: Any,
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and hand that on
    gc.freeze()  # what the server has imported stays
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.fsync = lambda fd: None  # a kill loses nothing that was written, and no test cuts the power
    for number, path in enumerate(outputs, 1):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _command(arguments: list[str]) -> None:
    from entroloop.launcher.__main__ import main

    sys.argv = ["entroloop", *arguments]
    main(arguments)


# -- of the session ----------------------------------------------------------------------------------------------------

_STARTED: list[Forked] = []
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _folder() -> Path:
    if not _FOLDERS:
        _FOLDERS.append(tempfile.TemporaryDirectory(prefix="forked-"))
    return Path(_FOLDERS[0].name)


def _leads_its_session(pid: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getsid(pid) == pid
    return True


def stop() -> None:
    """Ends what is still running, then the server; `ranks.stop` comes first."""
    for started in _STARTED:
        with suppress(ProcessLookupError):
            started.kill()
        started.wait(10)
    _STARTED.clear()
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()  # waits for it, so that its CPU time counts as that of a child
