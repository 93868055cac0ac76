"""The software and hardware that computed a phase: World -> facts for its line of the unsealed stats.jsonl."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

import torch

from entroloop.data import precision
from entroloop.data.world import World

PACKAGES = ("entroloop", "torch", "diffusers", "accelerate", "deepspeed", "numpy")


def version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def processor() -> str:
    """The CPU's name, or the machine's architecture where the system does not give the name."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def numerics(world: World) -> dict[str, Any]:
    """Facts outside the configuration on which the exact bytes of a result, and its speed, depend."""
    cuda = world.device.type == "cuda"
    return {
        **{name: version(name) or "not installed" for name in PACKAGES},
        "processor": torch.cuda.get_device_name(world.device) if cuda else processor(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": str(world.device),
        "float32": "full precision" if precision.is_full() else "TF32 or short sums",
        "threads": torch.get_num_threads(),
        "world_size": world.size,
    }
