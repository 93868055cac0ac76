"""Progress of a long phase: a live bar on a terminal, nothing on a pipe, and a state that other processes can read.

`Progress.state` is the current state. The launcher writes it into the phase's lease, and `entroloop status` reads it
there.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts `done` of `total` units. Use as a context manager; `advance` costs next to nothing.

    title  text to the left of the bar
    total  number of units
    unit   name of the unit, for the rate: `img`, `shard`, …
    done   units that an earlier attempt already finished
    """

    def __init__(self, title: str, total: float, unit: str, *, done: float = 0.0, show: bool = True) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._first, self._start = done, time.monotonic()
        self._bar: Bar | None = None
        if show and sys.stderr.isatty():
            from rich.console import Console

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
            self._task = self._bar.add_task(title, total=total, completed=int(done), rate="")

    @property
    def rate(self) -> float:
        """Units per second in this attempt."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    @property
    def state(self) -> dict[str, Any]:
        return {"done": self.done, "total": self.total, "unit": self.unit, "rate": round(self.rate, 3)}

    def advance(self, units: float = 1) -> None:
        self.done += units
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{self.rate:,.0f} {self.unit}/s")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
