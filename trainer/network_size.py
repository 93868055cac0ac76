"""The built-in networks' numbers of parameters, and the checks that a network fits the samples. Needs no torch.

    section `network` + shape of a sample  ->  kind, the shape that the network sees  ->  number of parameters

C channels, H height, W width, D features.
"""

from __future__ import annotations

import math
from itertools import pairwise

from entroloop.data.errors import UserError
from entroloop.trainer.catalogue import NETWORKS
from entroloop.trainer.network_config import AUTO, NetworkConfig

HEAD = 8  # channels of an attention head in the UNet
FREQUENCIES = 32  # random frequencies of the noise level in the MLP, each with sine and cosine


def fitted(config: NetworkConfig, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The kind of the network, and the shape in which it sees samples of `shape`, (C, H, W) or (D,).

    Raises UserError, naming the key, when the configuration does not fit the shape.
    """
    if config.fold is not None:
        c, h, w = config.fold
        if shape != (c * h * w,) or h != w:
            raise UserError(
                f"network.fold={list(config.fold)}: needs vectors of {c * h * w} features and equal sides, "
                f"not samples of shape {list(shape)}"
            )
        shape = config.fold
    takes = "vectors" if len(shape) == 1 else "images"
    fitting = [name for name, facts in NETWORKS.built_in.items() if facts.samples in (takes, "any")]
    kind = fitting[0] if config.kind == AUTO else config.kind
    if NETWORKS.facts(kind).samples not in (takes, "any"):
        right = " or ".join(fitting)
        raise UserError(f"network.kind={kind}: samples of shape {list(shape)} need {right} (or auto)")
    return kind, shape


def check_unet(config: NetworkConfig, shape: tuple[int, ...]) -> None:
    """Raises UserError, naming the key, when no UNet for images of `shape`, (C, H, W), has this configuration."""
    levels, size = len(config.channels), shape[-1]
    if size % 2 ** (levels - 1):
        raise UserError(
            f"network.channels: {levels} levels need a resolution divisible by {2 ** (levels - 1)}, not {size}"
        )
    if any(c % config.norm_groups for c in config.channels):
        raise UserError(f"network.norm_groups={config.norm_groups} must divide every one of network.channels")
    wrong = [level for level in config.attention if not 0 <= level < levels]
    if wrong:
        raise UserError(f"network.attention: level {wrong[0]} is not one of 0 … {levels - 1}")
    for level in (*config.attention, *([levels - 1] if config.middle_attention else [])):
        if config.channels[level] < HEAD:
            raise UserError(
                f"network.channels: attention needs at least {HEAD} channels, level {level} has "
                f"{config.channels[level]}: give it more, or change network.attention and network.middle_attention"
            )


def unet_parameters(config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> int:
    """Parameters of diffusers' UNet2DModel as `trainer/network.py` makes it. Raises UserError as `check_unet` does."""
    check_unet(config, shape)
    channels, time = config.channels, 4 * config.channels[0]

    def block(inside: int, out: int) -> int:
        """A residual block: two normalizations and convolutions, the noise level, a shortcut between unlike widths."""
        shortcut = _linear(inside, out) if inside != out else 0
        return 2 * inside + _conv(inside, out) + _linear(time, out) + 2 * out + _conv(out, out) + shortcut

    def attention(c: int) -> int:
        """A normalization, queries, keys and values, and the way back. Channels beyond whole heads are left out."""
        heads = c // HEAD * HEAD
        return 2 * c + 3 * _linear(c, heads) + _linear(heads, c)

    count = _conv(shape[0], channels[0]) + 2 * channels[0] + _conv(channels[0], shape[0])
    count += _linear(channels[0], time) + _linear(time, time) + ((num_classes + 1) * time if num_classes else 0)
    skips = [channels[0]]  # widths of the tensors that the way up concatenates, in the order of the way down
    for level, c in enumerate(channels):
        widths = [skips[-1], *[c] * config.layers_per_block]
        count += sum(block(inside, out) for inside, out in pairwise(widths))
        skips += widths[1:]
        if level < len(channels) - 1:
            count += _conv(c, c)  # halves the resolution
            skips.append(c)
    count += 2 * block(channels[-1], channels[-1]) + (attention(channels[-1]) if config.middle_attention else 0)
    inside = channels[-1]
    for level, c in reversed([*enumerate(channels)]):
        for _ in range(config.layers_per_block + 1):
            count += block(inside + skips.pop(), c)
            inside = c
        count += _conv(c, c) if level else 0  # doubles the resolution
        if level in config.attention:
            count += (2 * config.layers_per_block + 1) * attention(c)
    return count


def mlp_parameters(config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> int:
    """Parameters of `VectorNetwork` for samples of `shape`, (D,) or (C, H, W)."""
    width, features = config.width, math.prod(shape)
    condition = _linear(2 * FREQUENCIES, width) + _linear(width, width)
    labels = (num_classes + 1) * width if num_classes else 0
    block = 2 * width + 2 * _linear(width, width)
    return _linear(features, width) + condition + labels + config.depth * block + 2 * width + _linear(width, features)


def _linear(inside: int, out: int) -> int:
    return inside * out + out


def _conv(inside: int, out: int) -> int:
    """A convolution of 3 x 3."""
    return 9 * inside * out + out
