"""The step loop: a training set in, exported weights out.

    stream -> noise -> loss -> backward (engine) -> clip, AdamW (engine) -> averages -> (checkpoint) -> export

All randomness is a function of (seed, samples seen), so the state of training is the weights, Adam's moments, the
averages and one integer. A resumed run continues bit for bit on a CPU with the same world size and number of threads.
It can also be resumed at any other world size and by any other engine.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entroloop.data.devices import ahead, pinned, queued
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.memory import enough_memory
from entroloop.data.precision import full_precision
from entroloop.data.progress import Progress
from entroloop.data.seeds import derive_seed
from entroloop.data.streams.noise import training_noise
from entroloop.data.streams.stream import Batch, TrainingStream
from entroloop.data.wording import counted, say_once
from entroloop.data.world import World
from entroloop.trainer import checkpoint, ema
from entroloop.trainer.diffusion import Noise, Scale, training_loss
from entroloop.trainer.engines.make import make_engine
from entroloop.trainer.finite import Norms
from entroloop.trainer.network import DenoiserNetwork, build, casts_kept
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.saver import Saver
from entroloop.trainer.stats import Window
from entroloop.trainer.train_config import TrainConfig, learning_rate

log = logging.getLogger(__name__)
Drawn = tuple[Tensor, Tensor]  # the random numbers of a batch, from `training_noise`


@dataclass
class TrainJob:
    """One generation's training: its inputs, and where its files are written.

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
    """The mutable state of one generation's training.

    averages  by name, tensors like the engine's masters; "" is the average to sample from
    """

    def __init__(self, job: TrainJob, data: TrainingStream, world: World) -> None:
        config = job.config
        self.job, self.data, self.world = job, data, world
        self.scale = (
            Scale.of_images() if len(data.shape) == 3 else world.on_main(lambda: Scale.of_vectors(data.shards()))
        )
        self.num_classes = job.num_classes if config.labels else 0
        self.shape = data.shape
        if config.flip and len(self.shape) != 3:
            raise UserError("train.flip=true: vectors, and latents among them, have no mirror images: set it to false")
        network = self._fresh_network()
        state = _newest_checkpoint(job.checkpoints, world)
        if state is not None:
            world.on_main(lambda: checkpoint.restore(network, state["engine"]["weights"], job.checkpoints))
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.copy_(world.broadcast(parameter.detach()))
        if config.channels_last and network.images:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        attention = network.use_attention(job.network.attention_backend, world.device)
        self.engine = make_engine(config, network.train(), world)
        say_once(
            f"training with {self.engine.kind} on {counted(world.size, 'process')} of {world.device.type}, "
            f"precision {config.precision}, attention {attention}"
        )
        self.rules = {"": config.ema, **config.more_emas}
        self.averages = {name: [m.detach().clone() for m in self.engine.masters] for name in self.rules}
        self.seen = 0
        self.norms = Norms(self.engine, world)
        if state is not None:
            self._resume(state)
        self.saver = Saver(job.checkpoints, config, world, self.seen)

    def _fresh_network(self) -> DenoiserNetwork:
        """The network that training starts from. Checkpoints hold no buffers; they come from the seed or `warm`."""
        network = build(self.job.network, self.shape, self.num_classes, derive_seed(self.job.seed, 0, "network"))
        if self.job.warm is not None:
            checkpoint.restore(network, self.job.warm.state_dict(), self.job.weights)
        return network

    def _resume(self, state: dict[str, Any]) -> None:
        self.engine.load(state["engine"])
        for name, average in self.averages.items():
            self.engine.scatter(state["averages"].get(name, {}), average)
        self.seen = state["seen"]
        before, now = state["world"], {"engine": self.engine.kind, "size": self.world.size}
        saved = f"; saved by {before['engine']} on {before['size']} ranks, so the last bits may differ"
        log.info(
            "%s  resumed at %.1f of %.1f kimg%s",
            self.job.title, self.seen / 1000, self.job.config.images / 1000,
            "" if before == now else saved,
        )  # fmt: skip

    def save(self) -> None:
        """Starts to write a checkpoint of whole tensors, once the one before is written. Every rank calls it.

        Raises Failed as `step` does, and the errors of writing the one before.
        """
        self.norms.check()
        self.saver.settle()
        state = {
            "engine": self.engine.state(),
            "averages": {name: self.engine.gather(average) for name, average in self.averages.items()},
            "seen": self.seen,
            "world": {"engine": self.engine.kind, "size": self.world.size},
        }
        self.saver.start(self.seen, state, queued(self.world.device))

    def prepared(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Drawn | None]]:
        """The batches, with their random numbers where these are made early: for a GPU, a thread makes both for the
        next steps, in pinned memory."""
        device = self.world.device

        def made() -> Iterator[tuple[Batch, Drawn | None]]:
            for batch in batches:
                drawn = training_noise(self.shape, batch.position, len(batch.samples), self.job.seed, draws=3)
                normal, uniform, samples = (pinned(x, device) for x in (*drawn, batch.samples))
                labels = None if batch.labels is None else pinned(batch.labels, device)
                yield replace(batch, samples=samples, labels=labels), (normal, uniform)

        return ahead(made(), device) if device.type == "cuda" else ((batch, None) for batch in batches)

    def step(self, batch: Batch, drawn: Drawn | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One optimizer step over this rank's share of the global batch. Returns (loss [b], sigma [b], norm).

        drawn  the random numbers of the batch; None: they are made here

        Raises Failed, on every rank, when the loss of any rank or the gradient is not finite, unless only fp16's
        gradient overflowed. On a GPU, precisions other than fp16 raise it one step later.
        """
        config, engine = self.job.config, self.engine
        engine.set_rate(learning_rate(config, self.seen))
        losses, sigmas = [], []
        drawn = drawn or training_noise(self.shape, batch.position, len(batch.samples), self.job.seed, draws=3)
        with casts_kept(self.world.device):
            for i in range(engine.passes):
                with engine.one_pass(last=i == engine.passes - 1):
                    loss, sigma = self._loss(batch, drawn, i * engine.micro, engine.micro)
                    engine.backward(loss.mean())
                losses.append(loss.detach())
                sigmas.append(sigma)
        norm = engine.finish_step()
        loss, sigma = torch.cat(losses), torch.cat(sigmas)
        self.seen += config.batch
        self.norms.add(norm, loss, sigma, batch, self.seen)
        if self.norms.check(but=1 if engine.reads_later else 0):
            masters = engine.masters
            for name, rule in self.rules.items():
                ema.update(self.averages[name], masters, ema.decay(rule, self.seen, config.batch))
        return loss, sigma, norm

    def _loss(self, batch: Batch, drawn: Drawn, start: int, count: int) -> tuple[Tensor, Tensor]:
        """(loss [count], sigma [count]) of samples start … start + count - 1 of a batch."""
        config, device = self.job.config, self.world.device
        part = slice(start, start + count)
        normal, uniform = (x[part].to(device, non_blocking=True) for x in drawn)
        # Seeds only this device's generator: torch.manual_seed would take one per cent of a small network's step.
        generator = (
            torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        )
        generator.manual_seed(derive_seed(self.job.seed, 0, "dropout", batch.position + start))
        y = self.scale.to_model(batch.samples[part].to(device, non_blocking=True))
        if config.flip:
            y = torch.where((uniform[:, 1] < 0.5)[:, None, None, None], y.flip(-1), y)
        labels = None
        if self.num_classes:
            assert batch.labels is not None
            labels = batch.labels[part].to(device, non_blocking=True)
            labels = labels.masked_fill(uniform[:, 2] < config.label_dropout, self.num_classes)
        return training_loss(config.objective, self.engine.call, y, Noise(normal, uniform[:, 0]), labels)

    def export(self) -> None:
        """Seals the averaged weights. Every rank calls it. Raises Failed as `step` does."""
        self.norms.check()
        whole = {name: self.engine.gather(average) for name, average in self.averages.items()}
        copied = queued(self.world.device)

        def write() -> None:
            copied()
            found = {name: self._fresh_network() for name in whole}
            for name, network in found.items():
                network.load_state_dict(whole[name], strict=False)  # the average has no buffers
            checkpoint.export(
                self.job.weights, found, objective=self.job.config.objective, scale=self.scale,
                num_classes=self.num_classes, shape=self.shape, images_seen=self.seen, made_from=self.job.made_from,
            )  # fmt: skip

        self.world.on_main(write)


@full_precision()
@enough_memory("lower train.micro_batch, or train on more processes")
def train(
    job: TrainJob,
    data: TrainingStream,
    world: World,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_stats: Callable[[dict[str, Any]], None] = lambda line: None,
) -> str:
    """Trains to the end of the job, from its newest checkpoint if there is one, and seals the weights.

    Returns the kind of engine that ran. Raises Interrupted, with a checkpoint saved, when `should_stop` says so on any
    rank; Failed, with the last good checkpoint kept, when the loss is not finite or memory does not suffice;
    UserError when the configuration does not fit the launch.
    """
    trainer = Trainer(job, data, world)
    config = job.config
    batches = data.batches(
        seed=job.seed, seen=trainer.seen, until=config.images, batch=config.batch, rank=world.rank, size=world.size
    )
    with (
        contextlib.closing(trainer.saver) as saver,
        Progress(job.title, config.images, "img", done=trainer.seen, show=world.is_main) as progress,
    ):
        on_progress(progress)

        def tell(line: dict[str, Any]) -> None:
            progress.tell(loss=line["loss"], gradient_norm=line["gradient_norm"])
            on_stats(line)

        window = Window(job.stats, config, world, tell)
        asked = time.monotonic()
        for batch, drawn in trainer.prepared(batches):
            waited = time.monotonic() - asked
            loss, sigma, norm = trainer.step(batch, drawn)
            window.add(loss, sigma, norm, trainer.seen, waited)
            progress.advance(config.batch)
            stop, due = saver.due(trainer.seen // config.batch, should_stop)
            if (stop or due) and trainer.seen < config.images:
                trainer.save()
                if stop:
                    saver.settle()
                    raise Interrupted(f"training saved at {trainer.seen / 1000:.1f} of {config.images / 1000:.1f} kimg")
            asked = time.monotonic()
        saver.settle()
    trainer.export()
    trainer.engine.close()
    return trainer.engine.kind


def _newest_checkpoint(folder: Path, world: World) -> dict[str, Any] | None:
    """The newest checkpoint, None if there is none. Rank 0 alone reads it; the others get it without its tensors."""
    state: dict[str, Any] = {}

    def newest() -> dict[str, Any] | None:
        found = checkpoint.newest(folder)
        if found is None:
            return None
        state.update(found)
        small = {name: found["engine"][name] for name in ("steps", "loss_scale")}
        return {**found, "engine": small, "averages": {}}

    others = world.on_main(newest)
    return state or others
