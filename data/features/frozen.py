"""A pretrained network as an encoder of images, in batches of one fixed size.

    network + weights  ->  Frozen: uint8 [N, C, H, W] -> float32 [N, D]

N images, C channels, H height, W width, D features, B the fixed batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from entroloop.data import files, precision
from entroloop.data.errors import UserError

Images = NDArray[Any]
Forward = Callable[[torch.Tensor], torch.Tensor]


def in_batches(samples: Images, forward: Forward, dim: int, batch: int) -> NDArray[np.float32]:
    """The features of all samples, computed in batches of exactly B samples; zeros pad the last batch.

    forward  tensor [B, …] on the CPU -> features [B, dim]
    batch    B
    ->       float32 [N, dim]

    A row does not depend on how the samples are divided into calls. The function sets full precision while it runs,
    because TF32 convolutions, cuDNN's default, would change the third digit of FID. Other threads of the process see
    this setting too. Raises UserError if the environment forces TF32 (see `precision.full_precision`).
    """
    out = np.empty((len(samples), dim), dtype=np.float32)
    block = np.zeros((batch, *samples.shape[1:]), dtype=samples.dtype)
    with precision.full_precision(), torch.inference_mode():
        for start in range(0, len(samples), batch):
            n = min(batch, len(samples) - start)
            block[:n] = samples[start : start + n]
            block[n:] = 0
            out[start : start + n] = forward(torch.from_numpy(block))[:n].float().cpu().numpy()
    return out


def pil_resize(images: torch.Tensor, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, *size] by Pillow, which antialiases and rounds to integers."""
    rows = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = [np.asarray(Image.fromarray(row).resize(size[::-1], resample)) for row in rows]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


class Frozen:
    """A pretrained network as an encoder of images. Grey images are repeated to three channels.

    forward  uint8 [B, 3, H, W] on the CPU -> features [B, D]; it moves the images to the device itself
    weights  the weights files; their names and SHA-256 are part of the encoder's digest
    version  of the preprocessing; part of the encoder's digest
    part     replaces the file name in the digest, for a file that is published under several names
    """

    def __init__(
        self, name: str, dim: int, shape: tuple[int, ...], forward: Forward, *,
        weights: Sequence[Path], version: int, device: torch.device, part: str | None = None,
    ) -> None:  # fmt: skip
        check_images(name, shape)
        self.name = name
        self.dim = dim
        self.weights_sha256 = {path.name: files.sha256(path) for path in weights}
        named = {part or file: sha256 for file, sha256 in self.weights_sha256.items()}
        self.digest = files.digest({"encoder": name, "version": version, "weights": named})
        self._forward = forward
        # GPUs are faster with larger batches. On the CPU the padding of the last batch would cost more than that gains.
        self._batch = 64 if device.type == "cuda" else 8

    def __call__(self, samples: Images) -> NDArray[np.float32]:
        return in_batches(samples, self._three_channels, self.dim, self._batch)

    def _three_channels(self, images: torch.Tensor) -> torch.Tensor:
        return self._forward(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)


def check_images(name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the samples are images of one or three channels."""
    if len(shape) != 3:
        raise UserError(f"encoder {name} takes images, but these samples are vectors of {shape[0]} numbers: use pixel")
    if shape[0] not in (1, 3):
        raise UserError(f"encoder {name} takes images of 1 or 3 channels, not {shape[0]}")
