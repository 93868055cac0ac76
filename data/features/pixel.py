"""The encoder `pixel`: no network at all."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.store.shards import Samples


class Pixel:
    """The samples themselves: images flattened on the 0..255 scale, vectors as they are."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | None = None) -> None:
        self.name = "pixel"
        self.dim = math.prod(shape)
        self.digest = files.digest({"encoder": "pixel", "version": 1})
        self.weights_sha256: dict[str, str] = {}

    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        return samples.reshape(len(samples), math.prod(samples.shape[1:])).astype(np.float32)
