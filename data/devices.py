"""Work of the host beside a GPU: copies that do not block, and a thread that makes what is needed next.

pinned       tensors in pinned memory, from which `.to(device, non_blocking=True)` does not block
host_copy    a copy of a tensor on the host, complete once `queued` says so
ahead        an iterator whose items a thread makes before they are needed
ReadLater    a number of the device, read once the device has computed it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on the CPU in pinned memory if `device` is a GPU; else the tensor itself."""
    return x.pin_memory() if device.type == "cuda" else x


def host_copy(x: Tensor) -> Tensor:
    """A copy on the CPU. That of a tensor on a GPU is in pinned memory, and complete once `queued` has been waited for.

    The host does not wait, so the device may go on and change `x`: it copies first.
    """
    x = x.detach()
    if x.device.type != "cuda":
        return x.clone()
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def queued(device: torch.device) -> Callable[[], None]:
    """Returns a function that waits until a GPU has done everything that has been queued so far."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize


def thread_beside(device: torch.device) -> ThreadPoolExecutor:
    """A thread that makes things for `device`. Without `set_device` it would pin memory for the first GPU."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, "ahead")
    return ThreadPoolExecutor(1, "ahead", torch.cuda.set_device, (device,))


def ahead(items: Iterator[T], device: torch.device, depth: int = 2) -> Iterator[T]:
    """The same items. A thread makes up to `depth` of them before they are asked for.

    An exception of `items` is raised in place of its item.
    """
    end: Any = object()
    with thread_beside(device) as thread:
        coming: deque[Future[T]] = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item


class ReadLater:
    """A number of the device, copied to the host while the host goes on. `float` waits until it has been computed."""

    def __init__(self, x: Tensor) -> None:
        self._x = host_copy(x) if x.device.type == "cuda" else x.detach()
        self._wait = queued(x.device)

    def __float__(self) -> float:
        self._wait()
        return float(self._x)
