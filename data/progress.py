"""Progress of a long phase: a live bar on a terminal, timed log lines, and a state that other processes can read.

`Progress.state` is the current state. The launcher writes it into the phase's lease, and `entroloop status` reads it
there. The command line prints the log lines where there is no bar, and a run's log file gets them in any case.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)
EVERY = 30.0  # seconds between log lines
BARS = True  # whether terminals show bars


class Progress:
    """Counts `done` of `total` units. Use as a context manager; `advance` costs next to nothing.

    title  text to the left of the bar
    total  number of units
    unit   name of the unit, for the rate: `img`, `shard`, …
    done   units that an earlier attempt already finished
    show   whether this process shows the bar and logs lines
    """

    def __init__(self, title: str, total: float, unit: str, *, done: float = 0.0, show: bool = True) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._first, self._start = done, time.monotonic()
        self._show, self._said = show, self._start
        self.facts: dict[str, float] = {}
        self._bar: Bar | None = None
        if show and BARS and sys.stderr.isatty():
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
        return {"done": self.done, "total": self.total, "unit": self.unit, "rate": round(self.rate, 3), **self.facts}

    def tell(self, **facts: float | None) -> None:
        """Sets numbers that the bar, the lines and the state show, such as the loss. None leaves a number out."""
        self.facts = {name: value for name, value in {**self.facts, **facts}.items() if value is not None}

    def advance(self, units: float = 1) -> None:
        self.done += units
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=told({**self.state, "total": 0}))
        if self._show and (now := time.monotonic()) - self._said >= EVERY:
            self._said = now
            done = f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"
            log.info("%-23s  %8.1f s  %s, %s", self.title, now - self._start, done, told(self.state))

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def told(state: Mapping[str, Any]) -> str:
    """Formats a state for people: `loss 0.213, gradient norm 0.88, 1,234 img/s, 0:01:08 left`."""
    numbers = {name: state[name] for name in state if name not in ("done", "total", "unit", "rate")}
    texts = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items()]
    rate = state["rate"]
    texts.append(f"{rate:,.{0 if rate >= 10 else 2}f} {state['unit']}/s")
    if rate > 0 and state["total"] > state["done"]:
        texts.append(f"{timedelta(seconds=round((state['total'] - state['done']) / rate))} left")
    return ", ".join(texts)
