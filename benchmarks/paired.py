"""What benchmarks of training share: a set of noise images, a job, bare steps, and the row of two ways in pairs."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.trainer.diffusion import Noise, training_loss
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.train import Trainer, TrainJob
from entroloop.trainer.train_config import TrainConfig


def make_set(folder: Path, count: int, channels: int, side: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    for number, start in enumerate(range(0, count, 64)):
        part = images[start : start + 64]
        where = Provenance(np.full(len(part), -1), np.arange(len(part)), ("",) * len(part))
        write_shard(folder, number, part, None, where, first_key=start)
    seal_dataset(folder)
    return Dataset(folder)


def job_of(options: argparse.Namespace, folder: Path, steps: int, **changes: object) -> TrainJob:
    """The job of training a generation for `steps` steps, with statistics every fourth step and no checkpoint."""
    kimg = steps * options.batch / 1000
    values = {
        "kimg": kimg, "batch": options.batch, "checkpoint_kimg": 1e6, "log_kimg": 4 * options.batch / 1000,
        "precision": options.precision, "channels_last": options.channels_last, "compile": options.compile, **changes,
    }  # fmt: skip
    network = NetworkConfig(
        channels=tuple(options.channels), attention=tuple(options.attention), middle_attention=False, norm_groups=8
    )
    return TrainJob(
        TrainConfig(**values), network, 0, 0, folder / "checkpoints", folder / "weights", folder / "stats", {}
    )


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = now(device)
    work()
    return now(device) - start


def row(name: str, goal: str, pairs: list[tuple[float, float]], ratio: Callable[[float, float], float], **more: object):
    ratios = sorted(ratio(a, b) for a, b in pairs)
    found = {"what": name, "ratio": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3)}
    return {**found, "highest": round(ratios[-1], 3), "goal": goal, **more}


def bare_steps(trainer: Trainer, steps: int) -> None:
    """Forward, backward and AdamW of the trainer's own network on one tensor that is already in place."""
    world, config, engine = trainer.world, trainer.job.config, trainer.engine
    y = torch.randn(config.batch, *trainer.shape, device=world.device)
    noise = Noise(torch.randn_like(y), torch.rand(config.batch, device=world.device))
    for _ in range(steps):
        loss, _ = training_loss(config.objective, engine.call, y, noise, None)
        engine.accelerator.backward(loss.mean())
        engine.optimizer.step()
        engine.optimizer.zero_grad()
