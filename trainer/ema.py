"""Exponential moving averages of the weights. Their decay beta per step depends on the images seen, not on the steps.

half-life  beta = 0.5 ^ (batch / half-life); the half-life is at most `rampup` times the images seen so far (EDM's rule)
power      beta = min(max, 1 - (1 + images / power_batch) ^ -power) ^ (batch / power_batch), the rule of the paper's
           script for a batch of `power_batch`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from entroloop.data.config import Section

if TYPE_CHECKING:
    from torch import Tensor


class EmaConfig(Section):
    """An average of the weights."""

    rule: Literal["halflife", "power", "none"] = "halflife"
    """`halflife` (EDM: by images seen), `power` (diffusers' EMAModel, as in the paper's script) or `none` (the weights
    themselves)."""
    halflife_kimg: float = Field(500.0, gt=0)
    """Rule `halflife`: thousands of images after which a weight counts half."""
    rampup: float = Field(0.05, gt=0)
    """Rule `halflife`: the half-life is at most this share of the images seen so far, so that short runs forget their
    start."""
    power: float = Field(0.75, gt=0)
    """Rule `power`: the exponent in 1 - (1 + steps)^-power."""
    max: float = Field(0.9999, ge=0, lt=1)
    """Rule `power`: the largest decay per step."""
    power_batch: int = Field(128, ge=1)
    """Rule `power`: images per step."""


def decay(config: EmaConfig, images_seen: int, batch: int) -> float:
    """beta, the weight of the old average in a step of `batch` images that ends at `images_seen`."""
    if config.rule == "none":
        return 0.0
    if config.rule == "power":
        steps = images_seen / config.power_batch
        return float(min(config.max, 1 - (1 + steps) ** -config.power) ** (batch / config.power_batch))
    halflife = min(config.halflife_kimg * 1000, images_seen * config.rampup)
    return float(0.5 ** (batch / max(halflife, 1e-8)))


def update(averages: Sequence[Tensor], weights: Sequence[Tensor], keep: float) -> None:
    """averages <- keep * averages + (1 - keep) * weights, in place, all tensors in one call."""
    import torch  # reading a configuration does not need torch

    with torch.no_grad():
        torch._foreach_lerp_(list(averages), [w.detach() for w in weights], 1 - keep)
