"""The amount of memory that this process can still get."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import torch


def free_bytes(device: torch.device | None = None) -> int:
    """Bytes of memory that this process can still get.

    For a CUDA device: the device's free memory. Otherwise: the machine's available memory or the rest of this process's
    control group, whichever is less.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    available = re.search(r"MemAvailable:\s+(\d+)", meminfo)
    free: int = 1024 * int(available[1]) if available else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # without a control group, or with one that has no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free
