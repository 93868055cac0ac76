"""Leases: which process is at work on a part of a phase. Shared file systems have no reliable file locks.

A lease is a file that is created exclusively. Its owner rewrites it every second with a rising counter and the phase's
progress. Other processes can thus tell a live owner from a dead one (`data.owners`), and `entroloop status` can show
the progress. No clock is compared: each observer times the counter by its own clock. An owner that was frozen for
longer than observers wait loses the lease to an observer. The owner notices this at its next heartbeat, or before it
next writes a file.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from entroloop.data import files, owners
from entroloop.data.errors import Interrupted, UserError, unusable
from entroloop.data.progress import Progress

SIZE = 1024  # bytes; a fixed size makes every rewrite a single small write in place

log = logging.getLogger(__name__)


class InUse(UserError):  # noqa: N818 - a state
    """Another live process holds the lease. That process reports the run's state."""


class LeaseLost(Interrupted):
    """Another process took over the lease while its owner was frozen. That process reports the run's state."""


class Moved(UserError):  # noqa: N818 - what happened
    """The folder of the lease was moved or removed while its owner was at work. There is no state to report there."""


def read(path: Path) -> dict[str, Any] | None:
    """The content of a lease; None when there is no lease, it is damaged or another process is just writing it."""
    try:
        value = json.loads(path.read_text())
        int(value["pid"]), int(value["counter"]), str(value["host"]), str(value["token"]), str(value["what"])
        float((value["progress"] or {}).get("done", 0)), float((value["progress"] or {}).get("total", 0))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return dict(value)


def living(paths: Iterable[Path]) -> tuple[dict[Path, dict[str, Any]], dict[Path, dict[str, Any] | None]]:
    """(the leases of owners that live, those of owners that have ended), each with its content.

    Takes up to `owners.WATCH` seconds where owners work on other machines, else no time.
    """
    found = {path: read(path) for path in paths if path.is_file()}
    dead = {path: owners.is_dead(value.get("owner")) if value else None for path, value in found.items()}
    silent = owners.silent(path for path, ended in dead.items() if ended is None)
    ended = {path: value for path, value in found.items() if dead[path] or path in silent}
    return {path: value for path, value in found.items() if value and path not in ended}, ended


def sweep(run: Path) -> None:
    """Removes, in the whole folder of a run or a sweep, the leases and temporary files whose owners have ended."""
    _, ended = living([*run.rglob(".lease-*"), *run.rglob(".starting-over-*")])
    with contextlib.suppress(OSError):  # a finished run may be on a read-only disk
        for path, value in ended.items():
            _discard(path, value)
    files.sweep_temporaries(run)


def _discard(path: Path, seen: dict[str, Any] | None) -> None:
    """Removes the lease of an owner that has ended, unless another process has replaced it meanwhile."""
    with files.temporary(path) as aside:
        try:
            path.rename(aside)
        except FileNotFoundError:
            return  # another observer was faster
        moved = read(aside)
        if moved is not None and (seen is None or moved["token"] != seen["token"]):
            with contextlib.suppress(FileExistsError):  # a third process holds it now: the other observer will notice
                os.link(aside, path)  # it was the fresh lease of that other observer


class Lease:
    """Holds `path` while the context is open. Raises InUse when a live process holds it for `patience` seconds.

    lost  whether the last heartbeat or `check` saw that another process had taken over the lease
    """

    def __init__(self, path: Path, what: str, patience: float = 0) -> None:
        self.path, self.what, self.patience = path, what, patience
        self.progress: Progress | None = None
        self.lost = False
        self.token = uuid.uuid4().hex
        self._owner = owners.me()
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
        try:
            self._write()
        except OSError as error:
            os.close(self._file)
            self.path.unlink(missing_ok=True)
            raise unusable(error, self.path) from error
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _take_over(self) -> None:
        """Returns once the lease of a dead owner is out of the way."""
        if self.path.is_dir():
            raise UserError(f"{self.path}: is a folder where {self.what} needs a file of its own: remove the folder")
        seen = read(self.path)
        start = time.monotonic()
        while seen is None or not owners.is_dead(seen.get("owner")):
            time.sleep(owners.BEAT / 4)
            now = read(self.path)
            if not self.path.exists():
                return
            if seen is not None and now is not None and now["counter"] != seen["counter"]:
                if time.monotonic() < self._deadline:
                    seen, start = now, time.monotonic()
                    continue
                raise InUse(
                    f"{self.path.parent}: {self.what} is in use by process {now['pid']} on {now['host']}: "
                    "wait for it, or stop it and run the same command again"
                )
            seen = seen or now
            if time.monotonic() - start > owners.WATCH:
                break
        log.info("%s: taking over from a process that is gone", self.what)
        _discard(self.path, seen)

    def _write(self) -> None:
        self._counter += 1
        value = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": self.token,
            "counter": self._counter,
            "what": self.what,
            "progress": self.progress.state if self.progress else None,
        }
        os.pwrite(self._file, json.dumps(value).encode().ljust(SIZE), 0)

    def _beat(self) -> None:
        while not self._closed.wait(owners.BEAT) and self.held():
            with contextlib.suppress(OSError):  # the file system may be unavailable for a while
                self._write()

    def held(self) -> bool:
        """Whether the lease on disk is still this one."""
        for _ in range(3):  # an observer that took it by mistake puts it back at once
            now = read(self.path)
            if now is not None:
                break
            time.sleep(owners.BEAT / 10)
        self.lost = self.lost or now is None or now.get("token") != self.token
        return not self.lost

    def check(self) -> None:
        """Raises LeaseLost when another process has taken over the lease, and Moved when its folder is gone."""
        if not self.held():
            raise self.loss()

    def loss(self) -> LeaseLost | Moved:
        """The error of a lease that is not held any more."""
        folder = self.path.parent
        if not folder.is_dir():
            return Moved(f"{folder}: moved or removed during {self.what}: to go on, give the folder's new place")
        return LeaseLost(f"{folder}: another process took over {self.what} while this one was frozen")

    def __exit__(self, *error: object) -> None:
        self.release()
        os.close(self._file)

    def release(self) -> None:
        """Ends the heartbeat and removes the lease if it is still this one."""
        self._closed.set()
        self._thread.join()
        now = read(self.path)
        if now is not None and now.get("token") == self.token:
            self.path.unlink(missing_ok=True)
