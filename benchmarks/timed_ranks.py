"""Timed work: two processes of one thread each that share it, and ratios of the rates of two sides."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entroloop.data import world as worlds

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timed:
    """Images made, wall-clock and CPU seconds."""

    images: int
    wall: float
    cpu: float


def row(what: str, goal: float, ours: list[Timed], plain: list[Timed]) -> dict[str, Any]:
    """Ratios of the rates of two sides; entry i of both is from round i."""
    wall = [[t.images / t.wall for t in side] for side in (ours, plain)]
    cpu = [statistics.median(t.images / t.cpu for t in side) for side in (ours, plain)]
    return {
        "what": what,
        "ours_per_s": round(max(wall[0]), 3),
        "plain_per_s": round(max(wall[1]), 3),
        "ratio": round(max(wall[0]) / max(wall[1]), 3),
        "median": round(statistics.median(a / b for a, b in zip(*wall, strict=True)), 3),
        "cpu": round(cpu[0] / cpu[1], 3),
        "goal": goal,
    }


def serve(rank: int, size: int, rendezvous: str, connection: Any) -> None:
    torch.set_num_threads(1)
    world = worlds.join(rank, size, init_method=f"file://{rendezvous}", device=CPU)
    while (task := connection.recv()) is not None:
        function, arguments = task
        world.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        function(world, *arguments)
        world.barrier()
        connection.send((time.perf_counter() - wall, time.process_time() - cpu))
    worlds.leave()


class Ranks:
    """Two processes of one thread each; a task takes as long as the slower of them."""

    def __enter__(self) -> Ranks:
        context = multiprocessing.get_context("spawn")
        rendezvous = str(Path(tempfile.mkdtemp()) / "rendezvous")
        self.ranks = []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, 2, rendezvous, theirs), daemon=True)
            process.start()
            self.ranks.append((process, ours))
        return self

    def timed(self, images: int, function: Callable[..., None], *arguments: Any) -> Timed:
        for _, connection in self.ranks:
            connection.send((function, arguments))
        walls, cpus = zip(*(connection.recv() for _, connection in self.ranks), strict=True)
        return Timed(images, max(walls), max(cpus))

    def __exit__(self, *error: object) -> None:
        for process, connection in self.ranks:
            connection.send(None)
            process.join(30)
