"""Inception-v3 (Szegedy et al., arXiv 1512.00567) as a table of layers, in the two forms that published weights have.

    float32 [B, 3, 299, 299]  ->  pooled features, float32 [B, 2048]

Parameters have the names of the published files. The FID network of 2015 differs from torchvision's in its pools: its
average pools do not count the padding, and its last block has a maximum pool.

B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """The differences between the two networks.

    average   the 3x3 average pool inside blocks
    last      the pool of the last block
    classes   number of outputs of the layer after the features, which identifies the file
    name      for messages
    """

    average: Pool
    last: Pool
    classes: int
    name: str


def _average(count_padding: bool) -> Pool:
    return partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=count_padding)


_MAXIMUM: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_HALVE: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)

FID = Form(_average(False), _MAXIMUM, 1008, "the FID Inception network")
TORCHVISION = Form(_average(True), _average(True), 1000, "torchvision's Inception-v3")


class ConvNorm(nn.Module):
    """Convolution, batch norm by running statistics, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, padded: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


Layer = tuple[int, int, int]  # outputs, kernel height, kernel width
Chains = dict[str, list[Layer]]


class InceptionBlock(nn.Module):
    """Parallel chains of convolutions and a pool, concatenated along the channels.

    pooled  outputs of the 1x1 convolution after the pool; 0 for no such convolution
    halve   the last convolution of each chain has stride 2; the given pool must have stride 2 as well
    fork    names of the chains that end in two parallel convolutions, 1x3 and 3x1
    """

    def __init__(
        self, inputs: int, chains: Chains, pool: Pool, pooled: int = 0, *, halve: bool = False,
        fork: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self._pool = pool
        self._paths: list[list[list[str]]] = []  # chain -> its steps -> names of parallel convolutions
        for name, layers in chains.items():
            width, steps = inputs, []
            for i, (outputs, high, wide) in enumerate(layers, 1):
                key = f"{name}_{i}" if len(layers) > 1 or name in fork else name
                stride = 2 if halve and i == len(layers) else 1
                self.add_module(key, ConvNorm(width, outputs, (high, wide), stride, padded=stride == 1))
                steps.append([key])
                width = outputs
            if name in fork:
                ends = [f"{name}_{len(layers) + 1}{letter}" for letter in "ab"]
                for key, kernel in zip(ends, ((1, 3), (3, 1)), strict=True):
                    self.add_module(key, ConvNorm(width, width, kernel, 1, padded=True))
                steps.append(ends)
            self._paths.append(steps)
        self.branch_pool = ConvNorm(inputs, pooled, (1, 1), 1, padded=False) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for steps in self._paths:
            y = x
            for keys in steps:
                y = torch.cat([self.get_submodule(key)(y) for key in keys], 1)
            out.append(y)
        pooled = self._pool(x)
        return torch.cat([*out, pooled if self.branch_pool is None else self.branch_pool(pooled)], 1)


def _block_35(inputs: int, pooled: int, pool: Pool) -> InceptionBlock:
    chains: Chains = {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
    }
    return InceptionBlock(inputs, chains, pool, pooled)


def _block_17(c: int, pool: Pool) -> InceptionBlock:
    chains: Chains = {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(c, 1, 1), (c, 1, 7), (192, 7, 1)],
        "branch7x7dbl": [(c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)],
    }
    return InceptionBlock(768, chains, pool, 192)


def _block_8(inputs: int, pool: Pool) -> InceptionBlock:
    chains: Chains = {
        "branch1x1": [(320, 1, 1)],
        "branch3x3": [(384, 1, 1)],
        "branch3x3dbl": [(448, 1, 1), (384, 3, 3)],
    }
    return InceptionBlock(inputs, chains, pool, 192, fork=("branch3x3", "branch3x3dbl"))


def network(form: Form) -> nn.Sequential:
    """float32 [B, 3, 299, 299] -> pooled features [B, 2048]. The weights are PyTorch's initial ones."""
    to_17: Chains = {"branch3x3": [(384, 3, 3)], "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)]}
    to_8: Chains = {
        "branch3x3": [(192, 1, 1), (320, 3, 3)],
        "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
    }
    layers: dict[str, nn.Module] = {
        "Conv2d_1a_3x3": ConvNorm(3, 32, (3, 3), 2, padded=False),
        "Conv2d_2a_3x3": ConvNorm(32, 32, (3, 3), 1, padded=False),
        "Conv2d_2b_3x3": ConvNorm(32, 64, (3, 3), 1, padded=True),
        "pool_1": nn.MaxPool2d(3, 2),
        "Conv2d_3b_1x1": ConvNorm(64, 80, (1, 1), 1, padded=False),
        "Conv2d_4a_3x3": ConvNorm(80, 192, (3, 3), 1, padded=False),
        "pool_2": nn.MaxPool2d(3, 2),
        "Mixed_5b": _block_35(192, 32, form.average),
        "Mixed_5c": _block_35(256, 64, form.average),
        "Mixed_5d": _block_35(288, 64, form.average),
        "Mixed_6a": InceptionBlock(288, to_17, _HALVE, halve=True),
        "Mixed_6b": _block_17(128, form.average),
        "Mixed_6c": _block_17(160, form.average),
        "Mixed_6d": _block_17(160, form.average),
        "Mixed_6e": _block_17(192, form.average),
        "Mixed_7a": InceptionBlock(768, to_8, _HALVE, halve=True),
        "Mixed_7b": _block_8(1280, form.average),
        "Mixed_7c": _block_8(2048, form.last),
        "pool_3": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net.eval().requires_grad_(False)
