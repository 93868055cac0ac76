"""Random weights under given names, equal in every library: each name seeds a numpy generator."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch


def fill(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Float32 tensors of these names and shapes, scaled so that signals neither die nor explode in the network."""
    return {name: torch.from_numpy(_one(name, tuple(shape))) for name, shape in shapes.items()}


def _one(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) > 1:
        bound = math.sqrt(6 / math.prod(shape[1:]))
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    if name.endswith("weight"):
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    return rng.uniform(-0.2, 0.2, shape).astype(np.float32)
