"""The meeting point of ranks: a store that one process serves at a port, and the check that all ranks have joined.

address, port  ->  meet  ->  a store through which `data.world.join` makes the process group
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import datetime
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from entroloop.data.errors import Failed, Interrupted, UserError, reason


def meet(
    address: str,
    port: int,
    rank: int,
    size: int,
    *,
    serves: bool,
    name: str = "",
    seconds: float = 300.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Store:
    """The store through which `size` ranks make a process group. Returns once all ranks have connected to the store.

    serves  whether this process keeps the store; exactly one process does, rank 0 or torchrun's agent
    name    the same on every rank of a group; tells the group from another one that uses the same port by mistake

    This function polls. A wait inside torch would keep signals from reaching this Python process.
    Raises UserError when this process cannot listen at the port, Failed when some rank has not connected after
    `seconds`, and Interrupted when `should_stop` returns True.
    """
    deadline, pause = time.monotonic() + seconds, 0.01
    store: Store | None = None
    waits_for, why = "rank 0", ""
    here = [f"here/{r}" for r in range(size)]
    while True:
        try:
            if store is None:
                store = PrefixStore(f"entroloop/{name}", _reach(address, port, size, serves, deadline, should_stop))
                store.set(here[rank], "")
            if store.check(here):
                return store
            waits_for = ranks_named(r for r in range(size) if not store.check([here[r]]))
        except (OSError, RuntimeError) as error:  # rank 0 has not started yet, or has ended
            store, waits_for, why = None, "rank 0", f" ({reason(error)})"
        if should_stop():
            raise Interrupted(f"stopped while rank {rank} waited for {waits_for}")
        if time.monotonic() >= deadline:
            raise Failed(
                f"rank {rank} of {size} waited {seconds:g} s at {address}:{port} for {waits_for}{why}: see why "
                "that did not start, or set ENTROLOOP_JOIN_SECONDS to wait longer"
            )
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)


def _reach(address: str, port: int, size: int, serves: bool, until: float, should_stop: Callable[[], bool]) -> Store:
    """The store at that port, made by this process if it `serves`. Raises OSError or RuntimeError if there is none."""
    if not serves:
        socket.create_connection((address, port), timeout=2).close()
    listening = _listen(port).detach() if serves else None
    found: Future[Store] = Future()

    def connect() -> None:
        try:
            host = "localhost" if serves else address
            timeout = datetime.timedelta(seconds=5)
            found.set_result(
                TCPStore(host, port, size, serves, timeout, wait_for_workers=False, master_listen_fd=listening)
            )
        except RuntimeError as error:
            found.set_exception(error)

    # A foreign program that listens at the port and never answers blocks torch forever. In a thread of its own the
    # blocked call does not keep signals from this process.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    while not found.done() and not should_stop() and time.monotonic() < until:
        concurrent.futures.wait([found], timeout=0.1)
    if not found.done():
        atexit.register(thread.join, 8)  # torch gives up by then; a thread inside torch would abort the exit
        raise OSError(f"the program that listens at port {port} does not answer")
    return found.result()


def _listen(port: int) -> socket.socket:
    """A socket that listens at this port on every address of the machine. Raises UserError where it cannot."""
    try:
        with contextlib.suppress(OSError):  # without IPv6, or with the port taken, the next line says so
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=2048)
        return socket.create_server(("", port), backlog=2048)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({os.strerror(error.errno or 0)})"
        raise UserError(
            f"MASTER_PORT={port} {why} on {socket.gethostname()}: set MASTER_PORT to another port, or end the process "
            "that uses it"
        ) from error


def ranks_named(numbers: Iterable[int]) -> str:
    """`rank 3` or `ranks 1, 2, 5`. Names at most eight ranks and counts the rest."""
    every = list(numbers)
    named = ", ".join(map(str, every[:8]))
    more = f" and {len(every) - 8} more" if len(every) > 8 else ""
    return f"rank{'s' if len(every) > 1 else ''} {named}{more}"
