"""The processes that work together, as a value that callers pass in.

Nothing else in the project calls `torch.distributed`. Code that needs other processes takes a World, reads `rank` and
`size` from it and uses the few exchanges below. A World of size 1 needs no process group.

    launcher.process  ->  World  ->  trainer, selection, eval
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from entroloop.data import peers
from entroloop.data.errors import with_peers
from entroloop.data.precision import keep_full_precision

PADDING = 1 << 20  # bytes of padding that a gathering of uneven rows may receive; above, the ranks send in turn

T = TypeVar("T")


@dataclass
class Traffic:
    """Counts of one rank: the calls in which it waited for other ranks, and the bytes it received in those calls."""

    exchanges: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class World:
    """A group of `size` processes, seen from process number `rank`. This process computes on `device`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @with_peers("a barrier")
    def barrier(self) -> None:
        """Waits until every rank has called this method."""
        if self.size > 1:
            peers.wait_for_all()
            self.traffic.exchanges += 1
            dist.barrier()

    @with_peers("a reduction over all ranks")
    def all_reduce(self, x: Tensor, op: Literal["sum", "max", "min"] = "sum") -> Tensor:
        """The elementwise sum, maximum or minimum of every rank's `x`. `x` itself does not change."""
        if self.size == 1:
            return x
        out = x.to(self.device, copy=True)
        dist.all_reduce(out, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}[op])
        self._count(out)
        return out.to(x.device)

    @with_peers("a broadcast")
    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """The tensor of rank `source`. Every rank passes a tensor of the same shape and dtype."""
        if self.size == 1:
            return x
        out = x.to(self.device, copy=True)
        dist.broadcast(out, source)
        self._count(out)
        return out.to(x.device)

    @with_peers("the gathering of rows")
    def gather_rows(self, x: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """The rows of all ranks, concatenated in rank order; every rank gets all of them.

        x     [n_r, ...]  this rank's rows; n_r may differ between ranks and be 0
        rows  the n_r of all ranks, if the caller knows them (saves one exchange)
        ->    [sum n_r, ...]
        """
        if self.size == 1:
            return x
        if rows is None:
            rows = self.gather_counts(len(x))
        most = max(rows)
        if sends_in_turn(x, rows):
            own = [x.contiguous() if r == self.rank else x.new_empty((n, *x.shape[1:])) for r, n in enumerate(rows)]
            return torch.cat([self.broadcast(part, r) if len(part) else part for r, part in enumerate(own)])
        padded = x.to(self.device).contiguous()
        if len(x) < most:
            padded = torch.cat([padded, padded.new_zeros((most - len(x), *x.shape[1:]))])
        out = padded.new_empty((self.size * most, *x.shape[1:]))
        parts = out.tensor_split(self.size)  # of one tensor, because fresh memory can take longer than the exchange
        dist.all_gather(list(parts), padded)
        self._count(out)
        if min(rows) < most:
            out = torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])
        return out.to(x.device)

    def gather_counts(self, n: int) -> list[int]:
        """Every rank's integer, in rank order."""
        counts: list[int] = self.gather_rows(torch.tensor([n]), [1] * self.size).tolist()
        return counts

    def rotate(self, x: Tensor, incoming_rows: int) -> Tensor:
        """Sends `x` to the next rank and returns the `incoming_rows` rows that the previous rank sent."""
        return self.start_rotate(x, incoming_rows)()

    @with_peers("the rotation of rows")
    def start_rotate(self, x: Tensor, incoming_rows: int, by: int = 1) -> Callable[[], Tensor]:
        """Starts a `rotate` by that many ranks. The returned function waits; until it returns, `x` must not change."""
        if self.size == 1:
            return lambda: x
        out = x.new_empty((incoming_rows, *x.shape[1:]), device=self.device)
        sends = [dist.P2POp(dist.isend, x.to(self.device).contiguous(), (self.rank + by) % self.size)] if len(x) else []
        receives = [dist.P2POp(dist.irecv, out, (self.rank - by) % self.size)] if incoming_rows else []
        requests = dist.batch_isend_irecv(sends + receives) if sends or receives else []

        @with_peers("the rotation of rows")
        def finish() -> Tensor:
            for request in requests:
                request.wait()
            self._count(out)
            return out.to(x.device)

        return finish

    @with_peers("the gathering of small values")
    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's picklable value, in rank order. Meant for small values: counts, errors, rows of a table.

        As in `barrier`, `on_main` and `agree`, ranks may come hours apart: they wait outside torch, which has a limit.
        """
        if self.size == 1:
            return [value]
        peers.wait_for_all()
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        self.traffic.exchanges += 1
        return values

    def on_main(self, function: Callable[[], T]) -> T:
        """Calls `function` on rank 0 alone. Every rank returns the function's result, or raises its exception.

        The result must be small and picklable.
        """
        if self.size == 1:
            return function()
        result, error = self.gather_objects(_tried(function) if self.is_main else None)[0]
        if error is not None:
            raise error
        returned: T = result
        return returned

    def agree(self, function: Callable[[], T]) -> T:
        """Calls `function` on every rank and returns this rank's result.

        If the function raises on some ranks, every rank raises the exception of the lowest of those ranks. No rank is
        then left waiting for a rank that gave up.
        """
        if self.size == 1:
            return function()
        result, mine = _tried(function)
        for error in self.gather_objects(mine):
            if error is not None:
                raise error
        returned: T = result
        return returned

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return bool(self.all_reduce(torch.tensor([float(flag)]), "max").item())

    def share(self, n: int) -> slice:
        """This rank's share of n rows. The shares follow each other in rank order; sizes differ by at most one row."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def _count(self, *received: Tensor) -> None:
        self.traffic.exchanges += 1
        self.traffic.bytes += sum(x.numel() * x.element_size() for x in received)


def sends_in_turn(x: Tensor, rows: Sequence[int]) -> bool:
    """Whether rows like those of `x` are gathered rank by rank, because padding to the most would be too much."""
    return (max(rows) * len(rows) - sum(rows)) * math.prod(x.shape[1:]) * x.element_size() > PADDING


def _tried(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(the function's result, None), or (None, the exception it raised, in a form that other processes can read)."""
    try:
        return function(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # some libraries' exceptions cannot be unpickled: they need arguments that they do not store
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def join(
    rank: int,
    size: int,
    local_rank: int = 0,
    *,
    device: torch.device | None = None,
    store: Store | None = None,
    init_method: str = "env://",
    timeout: datetime.timedelta = datetime.timedelta(minutes=30),
    silence: float = 300.0,
) -> World:
    """Joins the process group (NCCL on CUDA, gloo elsewhere) and returns this process's World.

    store        the store that `meet` returned; without one the ranks meet as `init_method` says
    device       None chooses CUDA device number `local_rank` if there is CUDA, else the CPU
    local_rank   number of this process on its machine
    timeout      limit of one exchange of tensors, in which all ranks take part at about the same time
    silence      seconds after which a rank that hangs ends the ranks that wait for it; needs a store

    The process leaves the group at exit. Otherwise a few per cent of processes abort because gloo's thread is still
    running.
    `join` switches TF32 and reduced-precision sums off for the rest of the process. It raises UserError if the
    environment forces TF32 and there is a CUDA device.
    """
    if device is None:
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    keep_full_precision()
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if store is not None:
            store.set_timeout(timeout)
        dist.init_process_group(
            backend, init_method if store is None else None, timeout, world_size=size, rank=rank, store=store,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
        if store is not None:
            peers.watch(store, rank, size, silence)
        atexit.register(leave)
    return World(rank, size, local_rank, device)


def current(device: torch.device | None = None) -> World:
    """The World of a process group that other code has already joined. Without a group: a World of size 1."""
    where = torch.device("cpu") if device is None else device
    if not dist.is_initialized():
        return World(device=where)
    return World(dist.get_rank(), dist.get_world_size(), device=where)


def leave() -> None:
    """Leaves the process group, if there is one. A second Ctrl-C ends this at once, without a traceback."""
    with contextlib.suppress(KeyboardInterrupt):
        peers.stop()
        if dist.is_initialized():
            # A DDP model that outlives its group joins gloo's thread while holding the interpreter's lock. If gloo's
            # thread is just releasing its last work, it waits for the same lock: a deadlock. So collect the models
            # first and give gloo's thread a moment to finish.
            gc.collect()
            time.sleep(0.1)
            dist.destroy_process_group()
