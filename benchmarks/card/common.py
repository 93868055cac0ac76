"""What every section has: the device, the scale, its rows and verdicts, and clocks."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from entroloop.data.world import World, join

T = TypeVar("T")
HERE = Path(__file__).resolve().parent.parent
CONFIGS = HERE.parent / "configs"
CPU = World()
PROGRAM = """
import os
if os.environ.get("ENTROLOOP_PRETENDED"):
    import pretended
from entroloop.launcher.__main__ import main
main()
"""


@dataclass
class Kernels:
    """Launches by name, seconds in which the device worked, and seconds of the work in all. The pretended device has
    only the last."""

    launches: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0
    wall: float = 0.0


@dataclass
class Card:
    """A section at work.

    results    the file of rows
    folder     for its own files; removed afterwards
    tiny       whether sizes are small, and figures mean nothing
    pretended  whether the device is that of tests/pretended
    until      end of its time, by time.monotonic()
    """

    section: str
    results: Path
    folder: Path
    tiny: bool
    pretended: bool
    until: float

    @functools.cached_property
    def world(self) -> World:
        """This process alone on the first GPU, at full precision from now on."""
        return join(0, 1, device=torch.device("cuda", 0))

    @property
    def device(self) -> torch.device:
        return self.world.device

    def pick(self, full: T, tiny: T) -> T:
        return tiny if self.tiny else full

    def row(self, name: str, value: object, unit: str = "") -> None:
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        line = json.dumps({"section": self.section, "name": name, "value": value, "unit": unit})
        with self.results.open("a") as file:
            file.write(line + "\n")
        print(f"{self.section:10} {name:84} {value} {unit}", flush=True)

    def verdict(self, claim: str, right: bool) -> None:
        self.row(claim, bool(right), "verdict")

    def within(self, name: str, value: float, bound: float, unit: str = "") -> None:
        """A row, and the verdict that its value is at most the bound."""
        self.row(name, value, unit)
        self.verdict(f"{name}: at most {bound:g}", value <= bound)

    def has(self, seconds: float, what: str) -> bool:
        """Whether that much of the section's time is left. If not, a row says that `what` is left out."""
        enough = time.monotonic() + seconds < self.until
        if not enough:
            self.row(f"left out: {what}", f"{self.until - time.monotonic():.0f} s left, about {seconds:.0f} needed")
        return enough

    def lacks(self, module: str, what: str = "") -> bool:
        """Whether a library is missing. A row then says so."""
        missing = importlib.util.find_spec(module) is None
        if missing:
            self.row(what or module, "not installed")
        return missing

    def now(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Median time of the work, until the device has done it."""
        taken = []
        for _ in range(repeats):
            start = self.now()
            work()
            taken.append(self.now() - start)
        return statistics.median(taken)

    def kernels(self, work: Callable[[], object]) -> Kernels:
        """The kernels that the work runs on the device, and its copies."""
        found = Kernels()
        with contextlib.nullcontext() if self.pretended else profile(activities=[ProfilerActivity.CUDA]) as watch:
            found.wall = self.seconds(work)
        for event in (watch.events() if watch else None) or []:
            if str(event.device_type).endswith("CUDA"):
                found.launches[event.name] += 1
                found.busy += event.time_range.elapsed_us() / 1e6
        return found

    def busy(self, name: str, work: Callable[[], object]) -> None:
        """Rows: the share of the work's time in which the device is busy, and the launches."""
        found = self.kernels(work)
        self.row(f"{name}: device busy, under the profiler", found.busy / found.wall, "of the time")
        self.row(f"{name}: kernels and copies", found.launches.total(), "launches")

    def allocated(self) -> float:
        """MiB of tensors on the device."""
        return float(torch.cuda.memory_allocated()) / 2**20

    def entroloop(self, *arguments: object) -> list[str]:
        """The command of the program with these arguments, in a process of its own."""
        return [sys.executable, "-c", PROGRAM, *map(str, arguments)]

    def on_cpu(self) -> dict[str, str]:
        """The variables of a process that sees no GPU."""
        kept = {key: value for key, value in os.environ.items() if key != "ENTROLOOP_PRETENDED"}
        return {**kept, "CUDA_VISIBLE_DEVICES": ""}

    def thread(self) -> contextlib.AbstractContextManager[None]:
        """The context in which another thread computes on the device."""
        found: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.pretended:  # it belongs to the thread that imported it
            found = importlib.import_module("pretended").thread()
        return found


def equal(a: Any, b: Any) -> bool:
    """Whether two arrays, or tuples of arrays, are equal bit for bit."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())
