"""Stops a training whose loss or gradient is not finite, and names the step and the samples.

    norm of the gradient, copied from the device  ->  Norms.check  ->  whether the weights moved, or Failed

The norm is the same on every rank, and one loss that is not finite ruins it. So the losses are looked at, in one
exchange, only where the norm is not finite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from entroloop.data.devices import ReadLater
from entroloop.data.errors import Failed
from entroloop.data.streams.stream import Batch
from entroloop.data.world import World
from entroloop.trainer.engines.plain import Engine


class _Step(NamedTuple):
    norm: ReadLater
    loss: Tensor
    sigma: Tensor
    batch: Batch
    seen: int


class Norms:
    """The gradient's norms of the steps that are not checked yet. Every rank makes the same calls."""

    def __init__(self, engine: Engine, world: World) -> None:
        self.engine, self.world = engine, world
        self._steps: list[_Step] = []

    def add(self, norm: Tensor, loss: Tensor, sigma: Tensor, batch: Batch, seen: int) -> None:
        """Adds a step: the norm, this rank's loss [b] and sigma [b], the images seen at its end."""
        self._steps.append(_Step(ReadLater(norm), loss, sigma, batch, seen))

    def check(self, *, but: int = 0) -> bool:
        """Checks all steps but the last ones. Returns whether the last of the checked steps changed the weights.

        Raises Failed, on every rank, when the loss of any rank or the gradient is not finite, unless only fp16's
        gradient overflowed.
        """
        moved = True
        while len(self._steps) > but:
            step = self._steps.pop(0)
            norm = float(step.norm)
            moved = self.engine.moved(norm)
            if not (moved and math.isfinite(norm)):
                self._check_losses(step)
        return moved

    def _check_losses(self, step: _Step) -> None:
        config = self.engine.config
        found = [text for text in self.world.gather_objects(not_finite(step.loss, step.sigma, step.batch)) if text]
        if not found and config.precision == "fp16":
            return
        raise Failed(
            f"the {'loss' if found else 'gradient'} is not finite in step {step.seen // config.batch}, which "
            f"ends at {step.seen / 1000:.3f} kimg{': ' if found else ''}{'; '.join(found[:3])}; the last checkpoint is "
            "kept: lower train.lr or set train.precision=no, and start again under another name="
        )


def not_finite(loss: Tensor, sigma: Tensor, batch: Batch) -> str:
    """Names noise levels and training images of this rank's samples with a non-finite loss [b]; empty without any."""
    bad = (~torch.isfinite(loss)).nonzero().flatten().cpu()
    if not len(bad):
        return ""
    levels = sigma.cpu()[bad]
    images = batch.ids[bad.numpy()][:8].tolist()
    return f"sigma {levels.min():.3g} to {levels.max():.3g}, training images {images}"
