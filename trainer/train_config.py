"""How a generation is trained, as a configuration section, and the learning rate as a pure function of images seen."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from entroloop.data.errors import UserError
from entroloop.trainer.catalogue import OBJECTIVES
from entroloop.trainer.ema import EmaConfig
from entroloop.trainer.network_config import Precision

EngineName = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3"]


class TrainConfig(BaseModel):
    """How a generation is trained.

    objective        `edm` (Karras et al. 2022) or `ddpm` (epsilon prediction, the paper's), or the user's own
    engine           `auto` takes what the process was launched with; any other is refused unless it is what runs
    kimg             thousands of images seen in all: fixed for every generation, also where the training set grows
    batch            global batch, over all processes and accumulation steps
    micro_batch      images of one forward pass of a process; None: the process's whole share of the batch
    lr               of AdamW, after the warm-up
    warmup_kimg      linear warm-up
    schedule         of the learning rate after it: `constant`, `cosine` or `linear` to 0 at the end
    clip             largest gradient norm; 0 clips nothing
    labels           condition the network on class labels
    label_dropout    share of labels replaced by "no class", for classifier-free guidance
    flip             mirror half of the images
    precision        of the network's calls: `no` is float32; weights and averages stay float32
    compile          torch.compile the network: minutes at the start, faster steps on a GPU
    channels_last    memory format of convolutions
    warm_start       start from the previous generation's weights instead of from scratch
    checkpoint_kimg  thousands of images between checkpoints, of which the last `keep` stay
    log_kimg         thousands of images between lines of stats.jsonl
    ema              the average of the weights that is exported and sampled from
    more_emas        further averages, exported beside it as `ema_<name>`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    objective: Annotated[str, AfterValidator(OBJECTIVES.check)] = "edm"
    engine: EngineName = "auto"
    kimg: float = Field(96.0, gt=0)
    batch: int = Field(64, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup_kimg: float = Field(3.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    clip: float = Field(1.0, ge=0)
    labels: bool = False
    label_dropout: float = Field(0.1, ge=0, lt=1)
    flip: bool = False
    precision: Precision = "no"
    compile: bool = False
    channels_last: bool = False
    warm_start: bool = False
    checkpoint_kimg: float = Field(20.0, gt=0)
    keep: int = Field(2, ge=1)
    log_kimg: float = Field(2.0, gt=0)
    ema: EmaConfig = EmaConfig()
    more_emas: dict[str, EmaConfig] = {}

    @model_validator(mode="after")
    def _checkpoints_can_be_resumed(self) -> TrainConfig:
        for name in self.more_emas:
            if not name.isidentifier():
                raise ValueError(f"more_emas.{name}: give names of letters, digits and _")
        return self

    @property
    def images(self) -> int:
        """Images seen in all: whole batches."""
        return math.ceil(self.kimg * 1000 / self.batch) * self.batch


def learning_rate(config: TrainConfig, seen: int) -> float:
    """The rate of the step that starts at `seen` images: the warm-up, then the schedule over what is left."""
    start = config.warmup_kimg * 1000
    warm = min(1.0, (seen + config.batch) / start) if start else 1.0
    done = min(1.0, max(0.0, seen - start) / max(1.0, config.images - start))
    after = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}[config.schedule]
    return config.lr * warm * after


def micro_batches(config: TrainConfig, size: int) -> tuple[int, int]:
    """(images of one forward pass, passes a step) of each of `size` processes.

    Raises UserError when the world size does not divide the global batch, or the micro-batch a process's share.
    """
    if config.batch % size:
        raise UserError(f"train.batch={config.batch} does not divide over {size} processes: use a multiple of {size}")
    share = config.batch // size
    micro = config.micro_batch or share
    if share % micro:
        raise UserError(
            f"train.micro_batch={micro} does not divide the {share} images that each of {size} processes takes of "
            f"train.batch={config.batch}"
        )
    return micro, share // micro
