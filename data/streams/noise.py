"""The random numbers of training: a pure function of the seed and the position in the stream."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32  # positions that share one generator


def training_noise(
    shape: tuple[int, ...], position: int, count: int, seed: int, *, draws: int = 2
) -> tuple[Tensor, Tensor]:
    """The random numbers of the samples at positions position … position + count - 1 of the stream.

    Returns (standard normal float32 [count, *shape], uniform float32 [count, draws]). Both depend on the arguments
    alone, so a step sees the same noise at any world size.
    """
    normals, uniforms = [], []
    first_block, last_block = position // BLOCK, (position + count - 1) // BLOCK
    generator = torch.Generator()
    for block in range(first_block, last_block + 1):
        generator.manual_seed((seed + block * 0x9E3779B97F4A7C15) % 2**63)
        normals.append(torch.randn((BLOCK, *shape), generator=generator))
        uniforms.append(torch.rand((BLOCK, draws), generator=generator))
    cut = slice(position - first_block * BLOCK, position - first_block * BLOCK + count)
    return torch.cat(normals)[cut], torch.cat(uniforms)[cut]
