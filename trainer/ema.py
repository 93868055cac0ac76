"""Exponential moving averages of the weights: pure update rules that follow the images seen, not the steps.

half-life  beta = 0.5 ^ (batch / half-life), the half-life at most `rampup` of what was seen so far (EDM's rule)
power      beta = min(max, 1 - (1 + images / batch_of_reference) ^ -power), the rule of the paper's script
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor


class EmaConfig(BaseModel):
    """Which average of the weights is exported.

    rule           `halflife` (EDM), `power` (the paper's script) or `none` (the raw weights)
    halflife_kimg  thousands of images after which an old weight counts half
    rampup         half-life at most this share of the images seen, so that short runs forget their start
    power, max     of the power rule, whose steps are `power_batch` images each
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rule: Literal["halflife", "power", "none"] = "halflife"
    halflife_kimg: float = Field(500.0, gt=0)
    rampup: float = Field(0.05, gt=0)
    power: float = Field(0.75, gt=0)
    max: float = Field(0.9999, ge=0, lt=1)
    power_batch: int = Field(128, ge=1)


def decay(config: EmaConfig, images_seen: int, batch: int) -> float:
    """The factor that the average keeps in a step of `batch` images that ends at `images_seen`."""
    if config.rule == "none":
        return 0.0
    if config.rule == "power":
        steps = images_seen / config.power_batch
        return float(min(config.max, 1 - (1 + steps) ** -config.power) ** (batch / config.power_batch))
    halflife = min(config.halflife_kimg * 1000, images_seen * config.rampup)
    return float(0.5 ** (batch / max(halflife, 1e-8)))


def update(averages: Sequence[Tensor], weights: Sequence[Tensor], keep: float) -> None:
    """averages <- keep * averages + (1 - keep) * weights, in place, all tensors in one call."""
    import torch  # not needed where only the configuration is read

    with torch.no_grad():
        torch._foreach_lerp_(list(averages), [w.detach() for w in weights], 1 - keep)
