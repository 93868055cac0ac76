"""The training step of cifar10.yaml's and ffhq64.yaml's networks: speed, losses by precision, resume, memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import yaml
from paired import make_set

from card.common import CONFIGS, Card
from entroloop.data.memory import release
from entroloop.data.streams.noise import training_noise
from entroloop.data.streams.resident import Resident
from entroloop.trainer import ema
from entroloop.trainer.network_config import NetworkConfig, Precision
from entroloop.trainer.train import Trainer, TrainJob, train
from entroloop.trainer.train_config import TrainConfig

PRECISIONS: tuple[Precision, ...] = ("no", "bf16", "fp16")
OBJECTIVE = {"cifar10": "ddpm", "ffhq64": "edm"}
SIDE = {"cifar10": 32, "ffhq64": 64}


class Steps:
    """Training steps of one configuration's network on noise images that are in memory.

    changes  keys of the section `train`
    """

    def __init__(
        self, card: Card, name: str, batch: int, data: Resident, *, folder: str = "job", attention: Any = "sdpa",
        **changes: Any,
    ) -> None:  # fmt: skip
        network = network_of(card, name).model_copy(update={"attention_backend": attention})
        self.card, self.batch = card, batch
        job = job_of(card, network, batch, folder, objective=OBJECTIVE[name], **changes)
        self.trainer = Trainer(job, data, card.world)
        self.seed = job.seed
        stream = data.batches(seed=job.seed, seen=self.trainer.seen, until=10**9, batch=batch)
        self.batches = self.trainer.prepared(stream)

    def run(self, count: int) -> list[float]:
        """Trains. Returns the mean loss of every step, read at the end."""
        losses = [self.trainer.step(*next(self.batches))[0].mean() for _ in range(count)]
        return [float(loss) for loss in losses]

    def rate(self, count: int) -> float:
        """Images per second, after three steps."""
        self.run(3)
        return count * self.batch / self.card.seconds(lambda: self.run(count))

    def close(self) -> None:
        self.batches.close()  # type: ignore[attr-defined]  # a generator: its thread ends
        self.trainer.engine.close()
        self.trainer.averages.clear()
        release(self.card.device)


def network_of(card: Card, name: str) -> NetworkConfig:
    if card.tiny:
        return NetworkConfig(channels=(8, 8), attention=(1,), norm_groups=4)
    return NetworkConfig(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["network"])


def job_of(card: Card, network: NetworkConfig, batch: int, folder: str, **changes: Any) -> TrainJob:
    values = {"kimg": 1e6, "batch": batch, "lr": 1e-4, "warmup_kimg": 0, "checkpoint_kimg": 1e6, "log_kimg": 1e6}
    config = TrainConfig(**{**values, **changes})
    place = card.folder / folder
    return TrainJob(config, network, 0, 0, place / "checkpoints", place / "weights", place / "stats.jsonl", {})


def data_of(card: Card, name: str) -> Resident:
    return Resident(make_set(card.folder / name, card.pick(1024, 64), 3, card.pick(SIDE[name], 8)))


def training(card: Card) -> None:
    data = {name: data_of(card, name) for name in OBJECTIVE}
    many = card.pick(20, 2)
    for name, batch in (("cifar10", 128), ("ffhq64", 32)):
        batch = card.pick(batch, 8)
        for precision in PRECISIONS:
            rate(card, name, batch, data[name], many, precision=precision)
    _losses(card, data["cifar10"])
    _resume(card, data["cifar10"])
    _one_step(card, data["cifar10"])
    _memory(card, data["cifar10"])
    rate(card, "ffhq64", card.pick(128, 16), data["ffhq64"], many, precision="bf16")
    for name, batch in (("cifar10", 128), ("ffhq64", 32)):
        batch = card.pick(batch, 8)
        for precision in ("bf16", "fp16"):
            if card.has(4, f"{name}, {precision}, channels_last"):
                rate(card, name, batch, data[name], many, precision=precision, channels_last=True)


def rate(card: Card, name: str, batch: int, data: Resident, many: int, **changes: Any) -> None:
    """Rows: images per second of a network's training steps, and the most memory."""
    torch.cuda.reset_peak_memory_stats()
    steps = Steps(card, name, batch, data, **changes)
    said = ", ".join([name, f"batch {batch}", *(f"{key}={value}" for key, value in changes.items())])
    began = time.monotonic()
    card.row(f"{said}: speed", steps.rate(many), "images/s")
    if changes.get("compile"):
        card.row(f"{said}: seconds to compile and measure", time.monotonic() - began, "s")
    card.row(f"{said}: peak memory", torch.cuda.max_memory_allocated() / 2**20, "MiB")
    steps.close()


def _losses(card: Card, data: Resident) -> None:
    """The same images and noise in three precisions."""
    count, batch = card.pick(200, 4), card.pick(128, 8)
    means = {}
    for precision in PRECISIONS:
        steps = Steps(card, "cifar10", batch, data, precision=precision)
        losses = steps.run(count)
        steps.close()
        means[precision] = math.fsum(losses) / count
        card.row(f"mean loss of {count} steps, precision={precision}", means[precision])
        card.verdict(f"the loss is finite in every step, precision={precision}", all(map(math.isfinite, losses)))
    for precision in PRECISIONS[1:]:
        off = abs(means[precision] / means["no"] - 1)
        card.within(f"mean loss in {precision} against float32, relative", off, card.pick(1e-2, 0.1))


def _resume(card: Card, data: Resident) -> None:
    """A checkpoint in fp16: the step after it, without and with a new start between."""
    batch, count = card.pick(128, 8), card.pick(10, 2)
    first = Steps(card, "cifar10", batch, data, folder="resumed", precision="fp16")
    norms = [float(first.trainer.step(*next(first.batches))[2]) for _ in range(count)]
    card.row("steps skipped by fp16", sum(not math.isfinite(norm) for norm in norms), f"of {count}")
    first.trainer.save()
    first.trainer.saver.settle()
    scale, expected = first.trainer.engine.state()["loss_scale"]["scale"], first.run(1)[0]
    first.close()
    second = Steps(card, "cifar10", batch, data, folder="resumed", precision="fp16")
    again = second.trainer.engine.state()["loss_scale"]["scale"]
    card.row("loss scale of fp16", scale)
    card.verdict("a resumed training has the loss scale of its checkpoint", again == scale)
    card.within("loss after a resume, relative difference", abs(second.run(1)[0] / expected - 1), 1e-3)
    second.close()


def _one_step(card: Card, data: Resident) -> None:
    """The parts of one step."""
    batch = card.pick(128, 8)
    steps = Steps(card, "cifar10", batch, data, precision="bf16")
    steps.run(3)
    step = card.seconds(lambda: steps.run(5)) / 5
    card.row("cifar10, bf16: one step", 1e3 * step, "ms")
    noise = card.seconds(lambda: training_noise(data.shape, 0, batch, steps.seed, draws=3), 5)
    card.row("noise of a step, made by a thread of the host", noise / step, "of a step")
    host = torch.zeros(batch, *data.shape).pin_memory()
    copied = card.seconds(lambda: host.to(card.device, non_blocking=True), 5)
    card.row("copy of a step's noise", copied / step, "of a step")
    trainer = steps.trainer
    update: Callable[[], None] = lambda: ema.update(trainer.averages[""], trainer.engine.masters, 0.999)  # noqa: E731
    card.row("update of the average", card.seconds(update, 5) / step, "of a step")
    card.busy("10 training steps", lambda: steps.run(card.pick(10, 1)))
    steps.close()


def _memory(card: Card, data: Resident) -> None:
    """What a training phase leaves behind on the device."""
    release(card.device)
    before, batch = card.allocated(), card.pick(128, 8)
    job = job_of(card, network_of(card, "cifar10"), batch, "whole", precision="bf16", kimg=4 * batch / 1000)
    train(job, data, card.world)
    release(card.device)
    card.within("memory that a finished training still holds", card.allocated() - before, 64, "MiB")
