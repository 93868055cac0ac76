"""The step loop: a training set in, exported weights out. The only file that imports accelerate.

    Resident stream -> noise -> loss -> backward -> clip -> AdamW -> EMA -> (checkpoint) -> export

All randomness is a function of (seed, samples seen), so the state of training is the weights, the optimizer, the
average and one integer; a resumed run continues bit for bit at the same world size and threads on a CPU.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from entroloop.data.errors import Failed, Interrupted
from entroloop.data.plan import derive_seed
from entroloop.data.progress import Progress
from entroloop.data.stream import Batch, Resident, rank_batch, training_noise
from entroloop.data.world import World
from entroloop.trainer import checkpoint, ema
from entroloop.trainer.diffusion import Noise, Objective, Scale, training_loss
from entroloop.trainer.ema import EmaConfig
from entroloop.trainer.network import DenoiserNetwork, NetworkConfig, build

log = logging.getLogger(__name__)


class TrainConfig(BaseModel):
    """How a generation is trained.

    objective        `edm` (Karras et al. 2022) or `ddpm` (epsilon prediction, the paper's)
    kimg             thousands of images seen in all: fixed for every generation, also where the training set grows
    batch            global batch, over all processes
    lr               of AdamW, after the warm-up
    warmup_kimg      linear warm-up
    schedule         of the learning rate after it: `constant`, `cosine` or `linear` to 0 at the end
    clip             largest gradient norm; 0 clips nothing
    labels           condition the network on class labels
    label_dropout    share of labels replaced by "no class", for classifier-free guidance
    flip             mirror half of the images
    precision        of the network's calls: `no` is float32
    checkpoint_kimg  thousands of images between checkpoints, of which the last `keep` stay
    log_kimg         thousands of images between lines of stats.jsonl
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    objective: Objective = "edm"
    kimg: float = Field(96.0, gt=0)
    batch: int = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup_kimg: float = Field(3.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    clip: float = Field(1.0, ge=0)
    labels: bool = False
    label_dropout: float = Field(0.1, ge=0, lt=1)
    flip: bool = False
    precision: Literal["no", "fp16", "bf16"] = "no"
    warm_start: bool = False
    checkpoint_kimg: float = Field(20.0, gt=0)
    keep: int = Field(2, ge=1)
    log_kimg: float = Field(2.0, gt=0)
    ema: EmaConfig = EmaConfig()

    @property
    def images(self) -> int:
        """Images seen in all: whole batches."""
        return math.ceil(self.kimg * 1000 / self.batch) * self.batch


def learning_rate(config: TrainConfig, seen: int) -> float:
    """The rate of the step that starts at `seen` images."""
    warm = min(1.0, (seen + config.batch) / (config.warmup_kimg * 1000)) if config.warmup_kimg else 1.0
    done = min(1.0, seen / config.images)
    after = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}[config.schedule]
    return config.lr * warm * after


@dataclass
class Job:
    """One generation's training: what goes in and where it is kept.

    checkpoints, weights, stats  folder of resume states, folder of the export, file of unsealed statistics
    made_from                    digests for the seal
    warm                         exported weights to start from (`train.warm_start`), or None
    """

    config: TrainConfig
    network: NetworkConfig
    seed: int
    num_classes: int
    checkpoints: Path
    weights: Path
    stats: Path
    made_from: dict[str, str]
    title: str = "train"
    warm: DenoiserNetwork | None = None


class Trainer:
    """The mutable state of one generation's training."""

    def __init__(self, job: Job, data: Resident, world: World) -> None:
        config = job.config
        rank_batch(config.batch, world.size)
        self.job, self.data, self.world = job, data, world
        self.scale = Scale.of(data.samples)
        self.num_classes = job.num_classes if config.labels else 0
        self.shape = tuple(data.samples.shape[1:])
        self.accelerator = Accelerator(cpu=world.device.type == "cpu", mixed_precision=config.precision)
        assert self.accelerator.num_processes == world.size, "accelerate counts other processes than the World"
        network = build(job.network, self.shape, self.num_classes, derive_seed(job.seed, 0, "network"))
        if job.warm is not None:
            checkpoint.restore(network, job.warm.state_dict(), job.weights)
        optimizer = torch.optim.AdamW(
            network.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.network = network.to(world.device).train()
        self.model, self.optimizer = self.accelerator.prepare(self.network, optimizer)
        self.weights = list(self.network.parameters())
        self.average = [w.detach().clone() for w in self.weights]
        self.seen = 0
        self._resume()

    def _resume(self) -> None:
        state = checkpoint.newest(self.job.checkpoints)
        if state is None:
            return
        checkpoint.restore(self.network, state["network"], self.job.checkpoints)
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)
        self.seen = state["seen"]
        log.info("%s  resumed at %.1f of %.1f kimg", self.job.title, self.seen / 1000, self.job.config.images / 1000)

    def save(self) -> None:
        if self.world.is_main:
            state = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "seen": self.seen,
            }
            checkpoint.save(self.job.checkpoints, self.seen, state, self.job.config.keep)
        self.world.barrier()

    def step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One optimizer step. Returns (loss [b], sigma [b], gradient norm)."""
        config, world = self.job.config, self.world
        b = len(batch.samples)
        normal, uniform = training_noise(self.shape, batch.position, b, self.job.seed, draws=3)
        torch.manual_seed(derive_seed(self.job.seed, 0, "dropout", batch.position))
        y = self.scale.to_model(batch.samples.to(world.device))
        uniform = uniform.to(world.device)
        if config.flip and y.ndim == 4:
            y = torch.where((uniform[:, 1] < 0.5)[:, None, None, None], y.flip(-1), y)
        labels = None
        if self.num_classes:
            assert batch.labels is not None
            labels = batch.labels.to(world.device)
            labels = labels.masked_fill(uniform[:, 2] < config.label_dropout, self.num_classes)
        noise = Noise(normal.to(world.device), uniform[:, 0])
        loss, sigma = training_loss(config.objective, self.model, y, noise, labels)
        self.accelerator.backward(loss.mean())
        norm = self.accelerator.clip_grad_norm_(self.weights, config.clip or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.seen)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seen += config.batch
        if not self.accelerator.optimizer_step_was_skipped:
            ema.update(self.average, self.weights, ema.decay(config.ema, self.seen, config.batch))
        return loss.detach(), sigma, norm

    def export(self) -> None:
        """Seals the averaged weights."""
        if self.world.is_main:
            with torch.no_grad():
                for weight, mean in zip(self.weights, self.average, strict=True):
                    weight.copy_(mean)
            checkpoint.export(
                self.job.weights,
                self.network.cpu(),
                objective=self.job.config.objective,
                scale=self.scale,
                num_classes=self.num_classes,
                shape=self.shape,
                images_seen=self.seen,
                made_from=self.job.made_from,
            )
        self.world.barrier()


def train(
    job: Job,
    data: Resident,
    world: World,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Trains to the end of the job, from its newest checkpoint if there is one, and seals the weights.

    Raises Interrupted, with a checkpoint saved, when `should_stop` says so on any rank; Failed, with the
    last good checkpoint kept, when the loss is not finite; UserError when the world size does not divide the batch.
    """
    trainer = Trainer(job, data, world)
    config = job.config
    every = max(1, round(config.checkpoint_kimg * 1000 / config.batch))
    logged = Window(job.stats if world.is_main else None, config)
    batches = data.batches(
        seed=job.seed, seen=trainer.seen, until=config.images, batch=config.batch, rank=world.rank, size=world.size
    )
    with Progress(job.title, config.images, "img", done=trainer.seen, show=world.is_main) as progress:
        on_progress(progress)
        for batch in batches:
            loss, sigma, norm = trainer.step(batch)
            check_finite(loss, sigma, batch, trainer.seen)
            logged.add(loss, norm, trainer.seen)
            progress.advance(config.batch)
            stop = bool(world.all_reduce(torch.tensor([float(should_stop())]), "max").item())
            if (stop or trainer.seen // config.batch % every == 0) and trainer.seen < config.images:
                trainer.save()
                if stop:
                    raise Interrupted(f"training saved at {trainer.seen / 1000:.1f} of {config.images / 1000:.1f} kimg")
    trainer.export()
    trainer.accelerator.free_memory()


def check_finite(loss: Tensor, sigma: Tensor, batch: Batch, seen: int) -> None:
    """Raises Failed that says where the loss stopped being finite."""
    if bool(torch.isfinite(loss).all()):
        return
    bad = (~torch.isfinite(loss)).nonzero().flatten().cpu()
    levels = sigma.cpu()[bad]
    raise Failed(
        f"the loss is not finite in the step that ends at {seen / 1000:.3f} kimg: sigma {levels.min():.3g} to "
        f"{levels.max():.3g}, training images {batch.ids[bad.numpy()][:8].tolist()}; the last checkpoint is kept: "
        "lower train.lr or set train.precision=no, and run the same command again"
    )


class Window:
    """Means of a few steps, written as lines of stats.jsonl."""

    def __init__(self, path: Path | None, config: TrainConfig) -> None:
        self.path, self.config = path, config
        self.every = max(1, round(config.log_kimg * 1000 / config.batch))
        self._reset()

    def _reset(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.start = time.monotonic()

    def add(self, loss: Tensor, norm: Tensor, seen: int) -> None:
        self.losses.append(loss.mean())
        self.norms.append(norm)
        if len(self.losses) < self.every:
            return
        if self.path is not None:
            seconds = time.monotonic() - self.start
            line: dict[str, Any] = {
                "phase": "train",
                "kimg": seen / 1000,
                "loss": float(torch.stack(self.losses).mean()),
                "gradient_norm": float(torch.stack(self.norms).mean()),
                "lr": learning_rate(self.config, seen),
                "images_per_second": round(len(self.losses) * self.config.batch / seconds, 1),
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._reset()
