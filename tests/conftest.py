"""Shared by the whole suite: writes without fsync waits, and finished runs that are made once.

pytest-xdist also reads this file in a process that runs no test, so only the fixtures import the program.
"""

from __future__ import annotations

import fcntl
import gc
import getpass
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

if TYPE_CHECKING:
    from entroloop.data.runfolder import Layout

# Files that take longest, first: whoever begins with them last would work alone at the end.
LONGEST = (
    "cluster", "engines", "pretended", "many_ranks", "peers", "paths", "runs_page", "frozen", "end_to_end", "page",
    "index", "voronoi", "generate", "sweep", "retention", "train", "fork", "main", "greedy", "threshold", "neighbours",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if not os.environ.get("ENTROLOOP_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: set ENTROLOOP_LONG=1, as CI does"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def watch() -> Any:
    """`pretended.watch`, which counts syncs and launches. A real device has no such counts."""
    if "pretended" not in sys.modules:
        pytest.skip("counts on the pretended device only")
    return sys.modules["pretended"].watch


@pytest.fixture(scope="session", autouse=True)
def _heard_interrupts() -> None:
    """A suite that was started in the background hears SIGINT as well: a shell's background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What this process and its children leave behind goes when pytest removes its own folders.

    The path stays as it is where it would be too long for sockets. The compiler's cache outlives the session.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}")
    folder = tmp_path_factory.mktemp("t", numbered=False)
    if len(str(folder)) < 64:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@pytest.fixture(scope="session", autouse=True)
def _quick_disk() -> None:
    """No test cuts the power: nothing waits until the disk has what was written."""
    os.fsync = lambda fd: None


@pytest.fixture(scope="session", autouse=True)
def _small_heap() -> None:
    """What is imported stays: collecting garbage, as each training does at its end, looks at what came later only."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _processes_end() -> Iterator[None]:
    yield
    for name in ("ranks", "forked"):
        if name in sys.modules:
            sys.modules[name].stop()


@pytest.fixture
def forked_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep in this process forks its runs, where it would start Python."""
    import forked

    from entroloop.launcher import process, sweep

    def start(command: list[str], *, stdout: BinaryIO, env: dict[str, str], **_: object) -> Any:
        assert command[:3] == [sys.executable, "-m", "entroloop.launcher"]
        return forked.entroloop(*command[3:], merged=True, output=Path(stdout.name), **env)

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
    monkeypatch.setattr(process, "StopFlag", lambda: bool)  # this process keeps its signal handlers


@pytest.fixture
def quick_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases and unfinished files are touched, and count as left behind, much sooner."""
    from entroloop.data import owners

    monkeypatch.setattr(owners, "BEAT", 0.05)
    monkeypatch.setattr(owners, "WATCH", 0.5)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: a folder that `make(folder)` has filled, once for all workers of the session. Read only."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def finished(once: Callable[[str, Callable[[Path], object]], Path]) -> Layout:
    """The tiny loop of `loops.py`, finished; its configuration is `tiny(finished.run.parent)`. Read only."""
    from loops import tiny

    from entroloop.data.runfolder import Layout
    from entroloop.data.world import World
    from entroloop.launcher.run import runner

    folder = once("tiny", lambda folder: runner.run(tiny(folder), World(), lambda: False))
    return Layout(tiny(folder).run_folder)


@pytest.fixture(scope="session")
def sweep(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of a sweep of `report_runs`; its report is beside it. Read only."""
    import report_runs

    return once("report", report_runs.make_page) / "sweep"
