"""Checks whether the other ranks live, and waits for them without a time limit as long as they do.

Each rank beats in the store of the process group from a thread of its own. Rank 0 watches all ranks, the others watch
rank 0. A rank that is slow goes on beating and is waited for; one that hangs (stopped, swapped out, on a machine that
is gone) falls silent. The ranks that watch it say so at intervals, and end after a limit, each with one line. Where the
silent process was one of the same machine and has ended, they end at once.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from torch._C._distributed_c10d import Store

from entroloop.data import owners
from entroloop.data.errors import Failed

BEAT = 1.0  # seconds between heartbeats
ENDED = 3  # beats of silence after which a rank of this machine is looked for
SAY = 30.0  # seconds of silence after which a rank is named, and again after each such time
LEFT = "left - at its end"  # in the place of a beat: count, owner and place of a process

log = logging.getLogger(__name__)
_hooks: list[Callable[[str], None]] = []
_peers: _Peers | None = None


def watch(store: Store, rank: int, size: int, limit: float) -> None:
    """Starts to beat for this rank and to watch others, until `stop`.

    limit  seconds of silence of a watched rank after which this process ends with status 1
    """
    global _peers
    _peers = _Peers(store, rank, size, limit)


def stop() -> None:
    """Tells the other ranks that this one has finished, so that none waits for its beats."""
    global _peers
    if _peers is not None:
        _peers.leave()
        _peers = None


def wait_for_all() -> None:
    """Waits until every rank has called this function as often as this one; without `watch` it returns at once.

    It polls, so that signals reach this process. Raises Failed when a rank has left the group without coming here, and
    when the store is gone with the process that kept it.
    """
    if _peers is not None:
        _peers.meet()


@contextlib.contextmanager
def before_end(hook: Callable[[str], None]) -> Iterator[None]:
    """While open, a process that ends because a rank hangs calls `hook` first, with the line that it will print.

    Hooks are called in the order in which they were opened.
    """
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


class _Peers:
    def __init__(self, store: Store, rank: int, size: int, limit: float) -> None:
        self.rank, self.size, self.limit = rank, size, limit
        self.watched = [r for r in range(size) if r != rank] if rank == 0 else [0]
        clone = store.clone  # type: ignore[attr-defined]  # missing in torch's stubs
        self.store: Store = clone()  # a connection per thread: a call keeps it to itself
        self._own: Store = clone()
        self._met = 0
        self._seen: dict[int, str] = {}
        self._lost = False
        self._over = threading.Event()
        self._say(0)  # now, so that a rank killed in the next moment is known by its process
        for work in (self._beat, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def meet(self) -> None:
        self._met += 1
        pause = 0.0005
        arrived = self._arrived(1)
        while arrived < self._met * self.size:
            time.sleep(pause)
            pause = min(1.5 * pause, 0.2)
            left = [r for r in self.watched if self._seen.get(r) == LEFT]
            arrived = self._arrived(0)
            if left and arrived < self._met * self.size:
                raise Failed(f"rank {left[0]} has ended: its log says why; run the same command again")

    def _arrived(self, more: int) -> int:
        try:
            return int(self.store.add("met", more))
        except RuntimeError as error:
            raise Failed(
                "the process that keeps the ranks together has ended (rank 0, or torchrun): the logs of the other "
                "ranks say why; run the same command again"
            ) from error

    def leave(self) -> None:
        """Says that this rank has finished. Rank 0, which may keep the store, waits two seconds for the others."""
        self._over.set()
        keys = [f"beat/{r}" for r in self.watched]
        with contextlib.suppress(RuntimeError):
            self.store.set(f"beat/{self.rank}", LEFT)
            for _ in range(40 if self.rank == 0 else 0):
                if self.store.check(keys) and set(self.store.multi_get(keys)) == {LEFT.encode()}:
                    break
                time.sleep(0.05)

    def _beat(self) -> None:
        """Tells the store that this rank lives, and asks it for the beats of the watched ranks."""
        try:
            for count in itertools.count():
                self._say(count)
                keys = [r for r in self.watched if r in self._seen or self._own.check([f"beat/{r}"])]
                values = self._own.multi_get([f"beat/{r}" for r in keys]) if keys else []
                self._seen |= {r: value.decode() for r, value in zip(keys, values, strict=True)}
                if self._over.wait(BEAT):
                    break
        except RuntimeError:
            self._lost = True  # the store has ended with its process: the next exchange says so

    def _say(self, count: int) -> None:
        self._own.set(f"beat/{self.rank}", f"{count} {owners.me()} process {os.getpid()} on {socket.gethostname()}")

    def _judge(self) -> None:
        """Counts own beats without an answer, not seconds: while this process is stopped itself, nobody is silent."""
        before: dict[int, str] = {}
        silent = dict.fromkeys(self.watched, 0.0)
        while not self._over.wait(BEAT) and not self._lost:
            seen = dict(self._seen)
            for r in self.watched:
                silent[r] = 0.0 if seen.get(r) != before.get(r) or seen.get(r) == LEFT else silent[r] + BEAT
            before = seen
            worst = max(self.watched, key=lambda r: silent[r])
            _, owner, place = seen.get(worst, "0 - of unknown place").split(" ", 2)
            who = f"rank {worst} ({place})"
            if silent[worst] >= ENDED * BEAT and owners.is_dead(owner):
                self._end(f"{who} has ended: its log says why; run the same command again")
            elif silent[worst] >= self.limit:
                self._end(
                    f"rank {self.rank} waited for {who}, which has not answered for {self.limit:g} s: it is stopped or "
                    "hangs: end it and run the same command again, or set ENTROLOOP_PEER_SECONDS to wait longer"
                )
            elif int(silent[worst] / SAY) > int((silent[worst] - BEAT) / SAY):
                log.warning("rank %d waits for %s: no answer for %.0f s", self.rank, who, silent[worst])

    def _end(self, line: str) -> None:
        """Ends the process. Its main thread is inside torch, and nothing can call it back from there."""
        for hook in list(_hooks):
            with contextlib.suppress(Exception):
                hook(line)
        print(f"entroloop: {line}", file=sys.stderr, flush=True)
        os._exit(1)
