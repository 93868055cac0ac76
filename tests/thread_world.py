"""Ranks as threads of one process: `on_threads(16, function, *args)` runs `function(world, ...)` on 16 ranks.

No processes and no process group are started, so that many ranks cost little. The exchanges count the same traffic as
those of a real World. Ranks that fall out of step fail at once instead of hanging: all must call the same exchange with
tensors that fit together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from entroloop.data.world import World, sends_in_turn

SECONDS = 120  # that a rank waits for the others


class _Meeting:
    """Where ranks exchange values."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=SECONDS)
        self._given: list[Any] = [None] * size

    def exchange(self, rank: int, call: tuple[Any, ...], value: Any = None) -> list[Any]:
        """Every rank's value, in rank order. Raises AssertionError where ranks make different calls."""
        self._given[rank] = (call, value)
        self.barrier.wait()
        given = list(self._given)
        self.barrier.wait()  # nobody writes its next value before everybody has read this one
        calls = [other for other, _ in given]
        assert calls == [call] * len(calls), f"ranks are out of step: {calls}"
        return [value for _, value in given]


@dataclass(frozen=True)
class ThreadWorld(World):
    """A World whose ranks are threads."""

    meeting: _Meeting = field(default_factory=lambda: _Meeting(1), compare=False)

    def _exchange(self, name: str, value: Any = None, *fits: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, (name, *fits), value)

    def barrier(self) -> None:
        if self.size > 1:
            self.traffic.exchanges += 1
            self._exchange("barrier")

    def all_reduce(self, x: Tensor, op: Literal["sum", "max", "min"] = "sum") -> Tensor:
        if self.size == 1:
            return x
        parts = torch.stack(self._exchange("all_reduce", x.clone(), op, x.shape, x.dtype))
        out = {"sum": lambda: parts.sum(0, dtype=x.dtype), "max": lambda: parts.amax(0), "min": lambda: parts.amin(0)}
        result: Tensor = out[op]()
        self._count(result)
        return result

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        if self.size == 1:
            return x
        out: Tensor = self._exchange("broadcast", x.clone(), source, x.shape, x.dtype)[source].clone()
        self._count(out)
        return out

    def gather_rows(self, x: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        if self.size == 1:
            return x
        if rows is None:
            rows = self.gather_counts(len(x))
        assert len(x) == rows[self.rank]
        parts = self._exchange("gather_rows", x.clone(), tuple(rows), x.shape[1:], x.dtype)
        if sends_in_turn(x, rows):
            for part in filter(len, parts):
                self._count(part)
        else:
            self._count(*[x.new_empty((max(rows), *x.shape[1:]))] * self.size)  # as padded
        return torch.cat(parts)

    def gather_counts(self, n: int) -> list[int]:
        if self.size == 1:
            return [n]
        self._count(torch.empty(self.size, dtype=torch.int64))
        return self._exchange("gather_counts", n)

    def start_rotate(self, x: Tensor, incoming_rows: int, by: int = 1) -> Callable[[], Tensor]:
        if self.size == 1:
            return lambda: x
        out: Tensor = self._exchange("rotate", x, by, x.shape[1:], x.dtype)[(self.rank - by) % self.size]
        assert len(out) == incoming_rows

        def finish() -> Tensor:
            self._count(out)
            return out.clone()

        return finish

    def gather_objects(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        self.traffic.exchanges += 1
        return self._exchange("gather_objects", value)


def on_threads(
    size: int, function: Callable[..., Any], *args: Any, per_rank: list[tuple[Any, ...]] | None = None
) -> list[Any]:
    """Runs `function(world, *args)` (or `function(world, *per_rank[rank])`) on every rank; results in rank order.

    An exception on any rank ends the others and is raised here.
    """
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        try:
            world = ThreadWorld(rank, size, meeting=meeting)
            results[rank] = function(world, *(args if per_rank is None else per_rank[rank]))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if errors:
        raise errors[0]
    return results
