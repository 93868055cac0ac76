"""Chooses whether a training set is decoded into memory or streamed.

Dataset + mode + free memory  ->  open_stream  ->  TrainingStream
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from entroloop.data.memory import free_bytes
from entroloop.data.store.dataset import Dataset
from entroloop.data.streams.order import BUFFER
from entroloop.data.streams.resident import Resident
from entroloop.data.streams.stream import TrainingStream
from entroloop.data.streams.streaming import Streaming
from entroloop.data.world import World

Mode = Literal["auto", "resident", "streaming"]
MEMORY_SHARE = 0.25  # share of the free memory that a resident set may use


def open_stream(
    dataset: Dataset,
    mode: Mode = "auto",
    *,
    workers: int = 1,
    buffer: int = BUFFER,
    memory_share: float = MEMORY_SHARE,
    skip_damaged: bool = False,
    world: World | None = None,
) -> TrainingStream:
    """Opens a set as `mode` says. `auto` opens it in memory if it needs at most `memory_share` of the free memory.

    With `skip_damaged`, `auto` streams. All ranks of `world` choose alike.
    """
    fits = decoded_bytes(dataset) <= memory_share * free_bytes() and not skip_damaged
    if world is not None:  # all ranks must choose alike
        fits = not world.any(not fits)
    if mode == "resident" or (mode == "auto" and fits):
        return Resident(dataset, world, buffer=buffer)
    return Streaming(dataset, workers=workers, buffer=buffer, skip_damaged=skip_damaged)


def decoded_bytes(dataset: Dataset) -> int:
    """Bytes of memory that the whole decoded set needs."""
    return len(dataset) * math.prod(dataset.shape) * int(np.dtype(dataset.manifest.about["dtype"]).itemsize)
