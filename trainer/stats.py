"""Means over a few steps, written as lines of stats.jsonl, which is not sealed."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entroloop.data import files
from entroloop.data.world import World
from entroloop.trainer.train_config import TrainConfig, learning_rate

EDGES = (0.05, 0.2, 0.8, 3.0)  # edges of the sigma buckets in which the loss is reported


class Window:
    """Collects the steps of one window. At its end rank 0 writes their means: losses of all ranks, times of rank 0.

    tell  rank 0 calls it with each line written. It may take long: the other ranks wait outside torch
    """

    def __init__(self, path: Path, config: TrainConfig, world: World, tell: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.config, self.world, self.tell = path, config, world, tell
        self.every = max(1, round(config.log_kimg * 1000 / config.batch))
        self._reset()

    def _reset(self) -> None:
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []  # (loss, sigma, norm) of each
        self.waited = 0.0
        self.start = time.monotonic()

    def add(self, loss: Tensor, sigma: Tensor, norm: Tensor, seen: int, waited: float) -> None:
        """Adds a step: its loss and sigma [b], its gradient's norm, images seen at its end, seconds waited for data.

        Every rank calls it at every step.
        """
        self.steps.append((loss, sigma, norm))
        self.waited += waited
        if len(self.steps) < self.every:
            return
        *own, norms = zip(*self.steps, strict=True)
        loss, sigma = (self.world.gather_rows(torch.cat(values)).cpu() for values in own)

        def write() -> None:
            line = self._line(loss, sigma, torch.stack(norms).tolist(), seen)
            files.add_line(self.path, line)
            self.tell(line)

        self.world.on_main(write)
        self._reset()

    def _line(self, loss: Tensor, sigma: Tensor, norms: list[float], seen: int) -> dict[str, Any]:
        seconds = time.monotonic() - self.start
        bucket = torch.bucketize(sigma, torch.tensor(EDGES))
        names = [f"sigma<{edge}" for edge in EDGES] + [f"sigma>={EDGES[-1]}"]
        by_sigma = {name: float(loss[bucket == i].mean()) for i, name in enumerate(names) if bool((bucket == i).any())}
        finite = [norm for norm in norms if math.isfinite(norm)]
        line: dict[str, Any] = {
            "phase": "train",
            "kimg": seen / 1000,
            "loss": float(loss.mean()),
            "loss_by_sigma": by_sigma,
            "gradient_norm": sum(finite) / len(finite) if finite else None,
            "lr": learning_rate(self.config, seen - self.config.batch),
            "images_per_second": round(len(norms) * self.config.batch / seconds, 1),
            "data_wait_share": round(self.waited / seconds, 4),
        }
        if len(finite) < len(norms):
            line["steps_skipped"] = len(norms) - len(finite)  # fp16's gradient overflowed
        line["memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)  # ru_maxrss: KiB
        if torch.cuda.is_available():
            line["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        return line
