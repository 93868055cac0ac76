"""When the checkpoints of a training come, and the thread that writes them while training goes on.

    Trainer.save: a copy of the state on rank 0's host  ->  Saver.start  ->  checkpoint.save, in a thread

Only when files appear depends on the clock. The state in a file depends on the number of images seen alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from entroloop.data.world import World
from entroloop.trainer import checkpoint
from entroloop.trainer.train_config import TrainConfig

APART = 300.0  # seconds between checkpoints
ASK_EVERY = 8  # steps between exchanges about stopping and about the speed
MEASURED = 10.0  # seconds, at least, that the first measurement of the speed takes; each later one takes twice as many


class Spacing:
    """The number of steps between checkpoints: as many as take `APART` seconds, at most `most`.

    steps  that number; None until the speed is known, without `most`

    The number is chosen once. It is chosen again if it is off by a factor of two, at the higher of the speeds of the
    last two measurements: a pause between two steps is no lower speed.
    """

    def __init__(self, most: int | None) -> None:
        self.most, self.steps = most, most
        self._chosen: int | None = None
        self._least = MEASURED
        self._before: float | None = None

    def measure(self, steps: int, seconds: float) -> bool:
        """Takes the seconds of so many steps; returns False if they are too few, and the measurement should go on."""
        if seconds < self._least:
            return False
        self._least = min(2 * self._least, APART)
        each = seconds / steps
        fitting = max(1, round(APART / min(each, self._before or each)))
        self._before = each
        if self._chosen is None or not self._chosen / 2 <= fitting <= 2 * self._chosen:
            self._chosen = fitting
            self.steps = fitting if self.most is None else min(fitting, self.most)
        return True


class Saver:
    """Writes checkpoints to `folder`, one at a time.

    seen  the number of images seen before the first step
    """

    def __init__(self, folder: Path, config: TrainConfig, world: World, seen: int = 0) -> None:
        self.folder, self.config, self.world = folder, config, world
        most = config.checkpoint_kimg
        self._spacing = Spacing(None if most is None else max(1, round(most * 1000 / config.batch)))
        self._thread = ThreadPoolExecutor(1, "write checkpoints")
        self._writing: Future[Path] | None = None
        self._saved = seen // config.batch  # in steps
        self._warm = False
        self._since = self._saved, time.monotonic()  # where the measurement of the speed began

    def close(self) -> None:
        """Waits for the file in progress."""
        self._thread.shutdown()

    def due(self, steps: int, told: Callable[[], bool]) -> tuple[bool, bool]:
        """(whether to stop, whether a checkpoint is due) after this number of steps: the same on every rank.

        told  whether this rank was told to stop

        Training also stops when a checkpoint could not be written; `settle` then raises the reason.
        """
        stop = late = False
        if self.world.size == 1 or steps % ASK_EVERY == 0:
            failed = self._writing is not None and self._writing.done() and self._writing.exception() is not None
            mine = torch.tensor([told() or failed, time.monotonic() - self._since[1]], dtype=torch.float32)
            flag, seconds = self.world.all_reduce(mine, "max").tolist()
            stop = bool(flag)
            late = steps % ASK_EVERY == 0 and self._measured(steps, seconds)
        every = self._spacing.steps
        return stop, late or (every is not None and steps - self._saved >= every)

    def _measured(self, steps: int, seconds: float) -> bool:
        """Takes the seconds since the measurement began on the slowest rank. Returns whether a checkpoint is late.

        The first steps count for nothing: caches are empty, and a network may be compiled. A checkpoint follows them at
        once if they took longer than checkpoints are apart.
        """
        if self._warm and not self._spacing.measure(steps - self._since[0], seconds):
            return False
        late = not self._warm and seconds >= APART
        self._warm, self._since = True, (steps, time.monotonic())
        return late

    def start(self, seen: int, state: Mapping[str, Any], copied: Callable[[], None]) -> None:
        """Starts to write a checkpoint. Every rank calls it, after `settle`; the state of rank 0 counts.

        copied  waits until the device has copied the state to the host
        """

        def write() -> Path:
            copied()
            return checkpoint.save(self.folder, seen, state, self.config.keep)

        if self.world.is_main:
            self._writing = self._thread.submit(write)
        self._saved = seen // self.config.batch

    def settle(self) -> None:
        """Waits until the file in progress is complete. Raises, on every rank, the error that kept it from being
        written."""

        def written() -> None:
            writing, self._writing = self._writing, None
            if writing is not None:
                writing.result()

        self.world.on_main(written)
