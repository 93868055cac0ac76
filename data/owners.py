"""Whether the process that owns a lease or a temporary file still lives. No clocks of two machines are compared.

An owner is a text that names a process of a machine: its process number and the time at which it started. The kernel
says of an owner on this machine whether it lives. An owner on another machine changes its files every BEAT seconds,
and an observer there sees by its own clock whether they change.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

BEAT = 1.0  # seconds between heartbeats
WATCH = 5.0  # seconds after which a silent owner counts as dead


@functools.cache
def machine() -> str:
    """Eight hexadecimal digits that change with the host, with each start of the kernel, and with the container."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _process(pid: int) -> tuple[str, str] | None:
    """(state, start in clock ticks) of a process of this machine; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def me() -> str:
    """This process as an owner: letters, digits and dots."""
    found = _process(os.getpid())
    return f"{machine()}.{os.getpid()}.{found[1] if found else 0}"


def is_dead(owner: object) -> bool | None:
    """Whether the owner has ended; None if it is a process of another machine, or no owner at all."""
    match = re.fullmatch(r"([0-9a-f]{8})\.([0-9]{1,9})\.([0-9]+)", owner) if isinstance(owner, str) else None
    if match is None or match[1] != machine():
        return None
    found = _process(int(match[2]))
    if found is not None:
        return found[0] in "ZX" or found[1] != match[3]  # a zombie has ended; a number may have a new process
    try:
        os.kill(int(match[2]), 0)
    except OSError as error:  # PermissionError: another user's process
        return isinstance(error, ProcessLookupError)
    return False


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """While open, touches the file or folder every BEAT seconds, so that other machines see that its owner lives."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def silent(paths: Iterable[Path]) -> list[Path]:
    """The files and folders among these that exist and do not change for WATCH seconds.

    Returns as soon as it has seen each of them change or vanish.
    """
    before = {path: mark for path in paths if (mark := stamp(path)) is not None}
    end = time.monotonic() + WATCH
    while before and time.monotonic() < end:
        time.sleep(BEAT / 4)
        before = {path: mark for path, mark in before.items() if stamp(path) == mark}
    return list(before)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """A value that changes whenever the file or folder does; None where it does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening makes NFS look at the file again
    except FileNotFoundError:
        return None
    except OSError:
        return (0, 0, 0)
    try:
        status = os.fstat(descriptor)
        return status.st_ino, status.st_mtime_ns, status.st_size
    finally:
        os.close(descriptor)
