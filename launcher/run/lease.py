"""Leases: which process is at work on a part of a phase. Shared file systems have no reliable file locks.

A lease is a file that is created exclusively. Its owner rewrites it every second with a rising counter and the phase's
progress. Other processes can thus tell a live owner from a dead one, and `entroloop status` can show the progress. No
clock is compared: each observer times the counter by its own clock. An owner that was frozen for longer than observers
wait loses the lease to an observer. The owner notices this at its next heartbeat, or before it next writes a file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.progress import Progress

BEAT = 1.0  # seconds between heartbeats
WATCH = 5.0  # seconds after which a silent owner counts as dead
SIZE = 1024  # bytes; a fixed size makes every rewrite a single small write in place

log = logging.getLogger(__name__)


class InUse(UserError):  # noqa: N818 - a state
    """Another live process holds the lease. That process reports the run's state."""


class LeaseLost(Interrupted):
    """Another process took over the lease while its owner was frozen. That process reports the run's state."""


def read(path: Path) -> dict[str, Any] | None:
    """The content of a lease; None when there is no lease or another process is just writing it."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _dead_here(lease: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host and has ended."""
    if lease.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(lease["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class Lease:
    """Holds `path` while the context is open. Raises InUse when a live process holds it for `patience` seconds.

    lost  whether the last heartbeat or `check` saw that another process had taken over the lease
    """

    def __init__(self, path: Path, what: str, patience: float = 0) -> None:
        self.path, self.what, self.patience = path, what, patience
        self.progress: Progress | None = None
        self.lost = False
        self.token = uuid.uuid4().hex
        self._counter = 0
        self._closed = threading.Event()

    def __enter__(self) -> Lease:
        self._deadline = time.monotonic() + self.patience
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                break
            except FileExistsError:
                self._take_over()
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _take_over(self) -> None:
        """Returns once the lease of a dead owner is out of the way."""
        seen = read(self.path)
        start = time.monotonic()
        while seen is None or not _dead_here(seen):
            time.sleep(BEAT / 4)
            now = read(self.path)
            if not self.path.exists():
                return
            if seen is not None and now is not None and now.get("counter") != seen.get("counter"):
                if time.monotonic() < self._deadline:
                    seen, start = now, time.monotonic()
                    continue
                raise InUse(
                    f"{self.path.parent}: {self.what} is in use by process {now.get('pid')} on {now.get('host')}: "
                    "wait for it, or stop it and run the same command again"
                )
            seen = seen or now
            if time.monotonic() - start > WATCH:
                break
        log.info("%s: taking over from a process that is gone", self.what)
        aside = self.path.with_name(f"{self.path.name}-{self.token}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return  # another observer was faster
        moved = read(aside)
        if moved is not None and seen is not None and moved.get("token") != seen.get("token"):
            with contextlib.suppress(FileExistsError):  # a third process holds it now: the other observer will notice
                os.link(aside, self.path)  # it was the fresh lease of that other observer
        aside.unlink()

    def _write(self) -> None:
        self._counter += 1
        value = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": self.token,
            "counter": self._counter,
            "what": self.what,
            "progress": self.progress.state if self.progress else None,
        }
        os.pwrite(self._file, json.dumps(value).encode().ljust(SIZE), 0)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT) and self.held():
            with contextlib.suppress(OSError):  # the file system may be unavailable for a while
                self._write()

    def held(self) -> bool:
        """Whether the lease on disk is still this one."""
        for _ in range(3):  # an observer that took it by mistake puts it back at once
            now = read(self.path)
            if now is not None:
                break
            time.sleep(BEAT / 10)
        self.lost = self.lost or now is None or now.get("token") != self.token
        return not self.lost

    def check(self) -> None:
        """Raises LeaseLost when another process has taken over the lease."""
        if not self.held():
            raise LeaseLost(f"{self.path.parent}: another process took over {self.what} while this one was frozen")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        now = read(self.path)
        if now is not None and now.get("token") == self.token:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
