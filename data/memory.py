"""Memory: the amount that this process can still allocate, its release after a phase, and phases that lack memory."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from entroloop.data.errors import Failed, lacks_memory, reason


def free_bytes(device: torch.device | None = None) -> int:
    """Bytes of memory that this process can still get.

    For a CUDA device: the device's free memory and what torch holds in reserve. Otherwise: the machine's available
    memory or the rest of this process's control group, whichever is less.
    """
    if device is not None and device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    free: int = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # without a control group, or with one that has no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


@functools.cache
def total_bytes(device: torch.device) -> int:
    """Bytes of memory of a CUDA device."""
    return int(torch.cuda.mem_get_info(device)[1])


def release(device: torch.device) -> None:
    """Returns the memory of a GPU that nothing uses any more, for the next phase and for other processes."""
    if device.type == "cuda":
        gc.collect()  # accelerate's wrappers refer to the network in circles
        torch.cuda.empty_cache()


@contextlib.contextmanager
def enough_memory(cure: str) -> Iterator[None]:
    """Raises Failed, one line that ends with `cure`, if the block runs out of memory on the CPU or on a GPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, Failed) or not lacks_memory(error):
            raise
        raise Failed(f"out of memory ({reason(error)}): {cure}") from error
