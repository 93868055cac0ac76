"""A pretrained network as an encoder of images, in batches of one fixed size.

    network + weights  ->  Frozen: uint8 [N, C, H, W] -> float32 [N, D]

N images, C channels, H height, W width, D features, B the fixed batch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from entroloop.data import files, precision
from entroloop.data.devices import ahead, pinned
from entroloop.data.errors import UserError

Images = NDArray[Any]
Forward = Callable[[torch.Tensor], torch.Tensor]


def in_batches(
    samples: Images,
    forward: Forward,
    dim: int,
    batch: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    prepare: Forward = lambda block: block,
) -> NDArray[np.float32]:
    """The features of all samples, computed in batches of exactly B samples; zeros pad the last batch.

    forward  tensor [B, …] on the CPU -> features [B, dim]
    batch    B
    device   where `forward` computes. Beside a GPU, a thread prepares the next batches meanwhile
    prepare  tensor [B, …] as in `samples` -> tensor [B, …] for `forward`, both on the CPU
    ->       float32 [N, dim]

    A row does not depend on how the samples are divided into calls. The function sets full precision while it runs,
    because TF32 convolutions, cuDNN's default, would change the third digit of FID. Other threads of the process see
    this setting too. Raises UserError if the environment forces TF32 (see `precision.full_precision`).
    """
    out = np.empty((len(samples), dim), dtype=np.float32)

    def prepared() -> Iterator[torch.Tensor]:
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            block = np.zeros((batch, *samples.shape[1:]), dtype=samples.dtype)
            block[: len(part)] = part
            yield pinned(prepare(torch.from_numpy(block)), device)

    blocks = ahead(prepared(), device) if device.type == "cuda" else prepared()
    with precision.full_precision(), torch.inference_mode():
        for start, block in zip(range(0, len(samples), batch), blocks, strict=True):
            n = min(batch, len(samples) - start)
            out[start : start + n] = forward(block)[:n].float().cpu().numpy()
    return out


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "resize")


def resizing_threads() -> int:
    """Threads that resize: those of torch on a machine without GPUs, else this GPU's share of the cores."""
    if not torch.cuda.is_available():
        return torch.get_num_threads()
    return max(1, len(os.sched_getaffinity(0)) // torch.cuda.device_count())


def pil_resize(images: torch.Tensor, size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, *size] by Pillow, which antialiases and rounds to integers."""
    rows = images.permute(0, 2, 3, 1).numpy()
    out = np.empty((len(rows), *size, 3), dtype=np.uint8)

    def resize(i: int) -> None:
        out[i] = np.asarray(Image.fromarray(rows[i]).resize(size[::-1], resample))

    count = resizing_threads()
    list((map if count == 1 else _threads(count).map)(resize, range(len(rows))))  # Pillow lets other threads run
    return torch.from_numpy(out).permute(0, 3, 1, 2)


class Frozen:
    """A pretrained network as an encoder of images. Grey images are repeated to three channels.

    forward  uint8 [B, 3, H, W] on the CPU -> features [B, D]; it moves the images to the device itself
    resize   uint8 [B, 3, H, W] -> uint8 [B, 3, h, w], both on the CPU: a step before `forward`
    weights  the weights files; their names and SHA-256 are part of the encoder's digest
    version  of the preprocessing; part of the encoder's digest
    part     replaces the file name in the digest, for a file that is published under several names
    """

    def __init__(
        self, name: str, dim: int, shape: tuple[int, ...], forward: Forward, *,
        weights: Sequence[Path], version: int, device: torch.device, part: str | None = None,
        resize: Forward = lambda images: images,
    ) -> None:  # fmt: skip
        check_images(name, shape)
        self.name = name
        self.dim = dim
        self.weights_sha256 = {path.name: files.sha256(path) for path in weights}
        named = {part or file: sha256 for file, sha256 in self.weights_sha256.items()}
        self.digest = files.digest({"encoder": name, "version": version, "weights": named})
        self._forward, self._resize, self._device = forward, resize, device
        # GPUs are faster with larger batches. On the CPU the padding of the last batch would cost more than that gains.
        self._batch = 64 if device.type == "cuda" else 8

    def __call__(self, samples: Images) -> NDArray[np.float32]:
        return in_batches(samples, self._forward, self.dim, self._batch, self._device, self._prepared)

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        return self._resize(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)


def check_images(name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the samples are images of one or three channels."""
    if len(shape) != 3:
        raise UserError(f"encoder {name} takes images, but these samples are vectors of {shape[0]} numbers: use pixel")
    if shape[0] not in (1, 3):
        raise UserError(f"encoder {name} takes images of 1 or 3 channels, not {shape[0]}")
