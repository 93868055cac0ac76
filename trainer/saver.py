"""When the checkpoints of a training come, and the thread that writes them while training goes on.

    Trainer.save: a copy of the state on rank 0's host  ->  Saver.start  ->  checkpoint.save, in a thread

Only when files appear depends on the clock. The state in a file depends on the number of images seen alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from entroloop.data.world import World
from entroloop.trainer import checkpoint
from entroloop.trainer.train_config import TrainConfig

APART = 300.0  # seconds between checkpoints
ASK_EVERY = 8  # steps between exchanges about checkpoints and about stopping


class Saver:
    """Writes checkpoints to `folder`, one at a time. As a context, it waits at the end for the file in progress."""

    def __init__(self, folder: Path, config: TrainConfig, world: World) -> None:
        self.folder, self.config, self.world = folder, config, world
        most = config.checkpoint_kimg
        self._steps = None if most is None else max(1, round(most * 1000 / config.batch))
        self._thread = ThreadPoolExecutor(1, "write checkpoints")
        self._writing: Future[Path] | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def due(self, steps: int, told: Callable[[], bool]) -> tuple[bool, bool]:
        """(whether to stop, whether a checkpoint is due) after this number of steps: the same on every rank.

        told  whether this rank was told to stop

        Training also stops when a checkpoint could not be written; `settle` then raises the reason.
        """
        due = self._steps is not None and steps % self._steps == 0
        if self.world.size > 1 and steps % ASK_EVERY:
            return False, due
        failed = self._writing is not None and self._writing.done() and self._writing.exception() is not None
        late = time.monotonic() - self._last >= APART
        every = self.world.all_reduce(torch.tensor([told() or failed, late], dtype=torch.float32), "max").tolist()
        return bool(every[0]), due or bool(every[1])

    def start(self, seen: int, state: Mapping[str, Any], copied: Callable[[], None]) -> None:
        """Starts to write a checkpoint. Every rank calls it, after `settle`; the state of rank 0 counts.

        copied  waits until the device has copied the state to the host
        """

        def write() -> Path:
            copied()
            return checkpoint.save(self.folder, seen, state, self.config.keep)

        if self.world.is_main:
            self._writing = self._thread.submit(write)
        self._last = time.monotonic()

    def settle(self) -> None:
        """Waits until the file in progress is complete. Raises, on every rank, the error that kept it from being
        written."""

        def written() -> None:
            writing, self._writing = self._writing, None
            if writing is not None:
                writing.result()

        self.world.on_main(written)
