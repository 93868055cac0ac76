"""How a generation is trained, as a configuration section, and the learning rate as a pure function of images seen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from entroloop.data.config import HOW, PATH, Named, Section
from entroloop.data.errors import UserError
from entroloop.data.paths import expanded
from entroloop.data.streams.order import rank_batch
from entroloop.trainer.catalogue import OBJECTIVES
from entroloop.trainer.ema import EmaConfig
from entroloop.trainer.network_config import Precision

EngineName = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3"]

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """How a generation is trained."""

    objective: Annotated[str, Named(OBJECTIVES)] = "edm"
    """`edm` (Karras et al. 2022), `ddpm` (epsilon prediction, as in the paper), or your own."""
    engine: Annotated[EngineName, HOW] = "auto"
    """The engine that runs the optimizer. `auto` uses the engine of the launch; any other name is refused unless
    that engine runs."""
    kimg: float = Field(96.0, gt=0)
    """Thousands of images seen in the training of a generation. The number is the same for every generation, even if
    the training set grows."""
    batch: int = Field(64, ge=1)
    """Global batch size, over all processes and accumulation steps."""
    micro_batch: int | None = Field(None, ge=1)
    """Images per forward pass of one process; null: the process's whole share of the batch."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of AdamW after the warm-up."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """The two betas of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    warmup_kimg: float = Field(3.0, ge=0)
    """Thousands of images over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning rate after the warm-up: `constant`, or `cosine` or `linear` down to 0 at the end."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    labels: bool = False
    """Condition the network on class labels."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of labels replaced by "no class", which classifier-free guidance needs."""
    flip: bool = False
    """Mirror half of the images."""
    precision: Precision = "no"
    """Precision of the network's calls; `no` is float32. Weights and averages stay float32."""
    compile: bool = False
    """Compile the network with torch.compile: takes minutes at the start, and steps are faster on a GPU."""
    channels_last: bool = False
    """Keep convolutions in the channels-last memory format."""
    warm_start: bool = False
    """Start from the weights of the previous generation instead of from scratch."""
    initial_weights: Annotated[str | None, PATH] = Field(None, min_length=1)
    """Folder of a UNet that diffusers saved, or of a pipeline with one; generation 0 starts from its weights. The
    section `network` must describe the same network."""
    checkpoint_kimg: Annotated[float | None, HOW] = Field(None, gt=0)
    """Largest number of images, in thousands, between two checkpoints, which otherwise are about five minutes apart;
    null: no limit."""
    keep: Annotated[int, HOW] = Field(2, ge=1)
    """Number of checkpoints that are kept while a generation is trained."""
    log_kimg: Annotated[float, HOW] = Field(2.0, gt=0)
    """Thousands of images between lines of stats.jsonl."""
    ema: EmaConfig = EmaConfig()
    """The average of the weights that is exported and sampled from."""
    more_emas: dict[str, EmaConfig] = Field({})
    """Further averages by name, exported as `ema_<name>` beside the average `ema`."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        for name in self.more_emas:
            if not name.isidentifier():
                raise ValueError(f"more_emas.{name}: give names of letters, digits and _")
        seen = round(self.kimg * 1000)
        if self.batch > seen:
            raise ValueError(
                f"batch={self.batch}: more than the {seen} images that a generation sees (kimg={self.kimg:g}): give a "
                "smaller batch, or more kimg"
            )
        return self

    @property
    def initial_folder(self) -> Path | None:
        """The folder of `initial_weights`, with ~ and variables replaced."""
        return None if self.initial_weights is None else Path(expanded(self.initial_weights))

    @property
    def images(self) -> int:
        """Images seen in all, rounded up to whole batches."""
        return math.ceil(self.kimg * 1000 / self.batch) * self.batch


def learning_rate(config: TrainConfig, seen: int) -> float:
    """The rate of the step that starts at `seen` images: the warm-up, then the schedule over the remaining images."""
    start = config.warmup_kimg * 1000
    warm = min(1.0, (seen + config.batch) / start) if start else 1.0
    done = min(1.0, max(0.0, seen - start) / max(1.0, config.images - start))
    after = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}[config.schedule]
    return config.lr * warm * after


def micro_batches(config: TrainConfig, size: int) -> tuple[int, int]:
    """(images per forward pass, passes per step) of each of `size` processes.

    Raises UserError when the world size does not divide the global batch, or the micro-batch does not divide a
    process's share of it.
    """
    share = rank_batch(config.batch, size)
    micro = config.micro_batch or share
    if share % micro:
        raise UserError(
            f"train.micro_batch={micro} does not divide the {share} images that each of {size} processes takes of "
            f"train.batch={config.batch}"
        )
    return micro, share // micro
