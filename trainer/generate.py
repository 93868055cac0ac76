"""Exported weights + a plan + a part of the shards -> new shards, to be sealed by the caller.

Sample i of a generation has a random generator of its own, seeded by (run seed, generation, i). The bounds of batches
depend on the shard alone. So sample i is the same image at any number of ranks or array tasks, and the same bytes on a
CPU. A thread encodes and writes each shard while the network computes the next shard.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.devices import pinned, thread_beside
from entroloop.data.errors import Interrupted
from entroloop.data.memory import enough_memory
from entroloop.data.precision import full_precision
from entroloop.data.progress import Progress
from entroloop.data.seeds import Part, bounds, derive_seed, generator
from entroloop.data.store import manifest
from entroloop.data.store.shards import Provenance, is_done, write_shard
from entroloop.data.wording import say_once
from entroloop.trainer.catalogue import OBJECTIVES
from entroloop.trainer.diffusion import Denoiser, Scale
from entroloop.trainer.guidance import denoiser_of
from entroloop.trainer.network import DenoiserNetwork, casts_kept, check_precision
from entroloop.trainer.network_config import Attention
from entroloop.trainer.sample_config import SampleConfig, check_fits_model, noise_levels
from entroloop.trainer.sampler import FreshNoise, clipped, draw, guided

log = logging.getLogger(__name__)
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
POLL = 0.5  # longest pause, in seconds, between two looks at the shards of other ranks
PATIENCE = 60.0  # shortest time, in seconds, without a new shard after which an idle rank makes the missing ones


@dataclass(frozen=True)
class SamplePlan:
    """The samples to draw: 0 … count - 1 of a generation of a run."""

    run_seed: int
    generation: int
    count: int
    shard_size: int

    @property
    def shards(self) -> list[tuple[int, int]]:
        """(first sample, last sample + 1) of every shard."""
        return bounds(0, self.count, self.shard_size)


def sample_labels(
    plan: SamplePlan, start: int, stop: int, num_classes: int, histogram: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Labels of samples start … stop - 1: in turn, or drawn with the frequencies of `histogram` [classes]."""
    if histogram is None:
        return np.arange(start, stop) % num_classes
    edges = np.cumsum(histogram) / histogram.sum()
    seeds = [derive_seed(plan.run_seed, plan.generation, "label", i) for i in range(start, stop)]
    return np.searchsorted(edges, np.array(seeds) / 2.0**63, side="right").clip(max=num_classes - 1)


class Generator:
    """Draws any samples of a plan from one set of exported weights.

    guide      folder of the guide's sealed weights, if the configuration uses a guide for this generation
    attention  the code that computes attention (`network.attention_backend`)

    Raises UserError when the configuration does not fit the weights, the guide or the device.
    """

    def __init__(
        self,
        weights: Path,
        config: SampleConfig,
        plan: SamplePlan,
        device: torch.device,
        histogram: NDArray[np.int64] | None = None,
        guide: Path | None = None,
        attention: Attention = "sdpa",
    ) -> None:
        check_precision("sample", config.precision, device)
        about: dict[str, Any] = manifest.read(weights).about
        self.config, self.plan, self.device, self.histogram = config, plan, device, histogram
        self.attention: Attention = attention
        self.shape = tuple(about["shape"])
        self.num_classes = int(about["num_classes"])
        self.scale = Scale(**about["scale"])
        check_fits_model(config, about["objective"], self.num_classes > 0)
        self.sigmas = noise_levels(config, about["objective"]).to(device)
        self._thread = thread_beside(device)
        self.denoise: Denoiser = denoiser_of(weights, config, guide, self._prepare)
        if config.guidance != 1:  # applied last: guiding each network by labels first would give the same
            self.denoise = guided(self.denoise, config.guidance, self.num_classes)
        if OBJECTIVES.facts(about["objective"]).clips and self.scale.image:
            self.denoise = clipped(self.denoise)

    def _prepare(self, network: DenoiserNetwork) -> DenoiserNetwork:
        network = network.to(self.device).requires_grad_(self.config.precision != "no")  # for `casts_kept`
        attention = network.use_attention(self.attention, self.device)
        say_once(f"sampling on {self.device.type}, precision {self.config.precision}, attention {attention}")
        if self.config.compile:
            # Compile once per batch size. At the second size torch would switch to a shape-generic graph, and which
            # size comes second differs between ranks.
            network.compile(dynamic=False)
        return network

    @full_precision()
    @torch.no_grad()
    def samples(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Samples start … stop - 1 as stored (uint8 images or float32 vectors) and their labels."""
        noise = self._noise(start, stop)
        labels = None
        if self.num_classes:
            labels = sample_labels(self.plan, start, stop, self.num_classes, self.histogram)
        given = None if labels is None else self._on_device(pinned(torch.from_numpy(labels), self.device))
        first = self.config.temperature * noise(-1)
        with casts_kept(self.device):
            x = draw(self.config.sampler, self._call, first, self.sigmas, given, noise, self.config.churn)
        return self.scale.from_model(x).cpu().numpy(), labels

    def _noise(self, start: int, stop: int) -> FreshNoise:
        """Fresh noise of samples start … stop - 1. For a GPU, a thread draws the noise of the next step meanwhile."""
        own = [generator(self.plan.run_seed, self.plan.generation, "sample", i) for i in range(start, stop)]
        coming: list[Future[Tensor]] = []

        def drawn() -> Tensor:
            return pinned(torch.stack([torch.randn(self.shape, generator=g) for g in own]), self.device)

        def noise(step: int) -> Tensor:
            made = coming.pop().result() if coming else drawn()
            if step >= 0 and self.device.type == "cuda":  # the sampler is a stochastic one
                coming.append(self._thread.submit(drawn))
            return self._on_device(made)

        return noise

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    def _call(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Calls the denoiser with its networks in the configuration's precision."""
        if self.config.precision == "no":
            return self.denoise(x, sigma, labels)
        with torch.autocast(self.device.type, PRECISIONS[self.config.precision]):
            return self.denoise(x, sigma, labels)


@enough_memory("lower sample.batch")
def generate(
    weights: Path,
    folder: Path,
    config: SampleConfig,
    plan: SamplePlan,
    part: Part,
    device: torch.device,
    *,
    whole: Part | None = None,
    histogram: NDArray[np.int64] | None = None,
    guide: Path | None = None,
    attention: Attention = "sdpa",
    title: str = "sample",
    show: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> int:
    """Writes those shards of this part that do not exist yet. Returns the number of images drawn.

    whole     the part that all ranks make together; `part` is this rank's share of it. The call returns once every
              shard of `whole` exists. If another rank's shard does not appear, this rank makes it, with the same bytes.
              None: does not wait for other ranks
    on_shard  is called with the number of every shard written, by the thread that writes

    Raises Interrupted between batches when `should_stop` returns True; finished shards are kept. Raises UserError as
    `Generator` and `write_shard` do.
    """

    # Ranks look at the folder and exchange nothing. Another rank may be dead, or busy for longer than a process group
    # waits, and an idle rank must still react to signals.
    def others() -> list[int]:
        return [] if whole is None else [i for i in whole.of(len(plan.shards)) if not is_done(folder, i)]

    mine = [i for i in part.of(len(plan.shards)) if not is_done(folder, i)]
    if not mine and not others():
        return 0
    loaded = functools.cache(lambda: Generator(weights, config, plan, device, histogram, guide, attention))
    slowest = 0.0  # seconds that the slowest shard took on this rank

    def samples_of(number: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        nonlocal slowest
        start, stop = plan.shards[number]
        begin, pieces = time.monotonic(), []
        for first, last in bounds(start, stop, config.batch):
            if should_stop():
                raise Interrupted(f"sampling stopped before image {first}; finished shards are kept")
            pieces.append(loaded().samples(first, last))
            progress.advance(last - first)
        slowest = max(slowest, time.monotonic() - begin)
        labels = np.concatenate([piece[1] for piece in pieces]) if loaded().num_classes else None
        return np.concatenate([piece[0] for piece in pieces]), labels

    def write(number: int, samples: NDArray[Any], labels: NDArray[np.int64] | None) -> None:
        start, stop = plan.shards[number]
        write_shard(folder, number, samples, labels, Provenance.sampled(plan.generation, start, stop), first_key=start)
        on_shard(number)

    total = sum(stop - start for start, stop in (plan.shards[i] for i in mine))
    with Progress(title, total, "img", show=show) as progress, ThreadPoolExecutor(1, "write shards") as writer:
        on_progress(progress)
        writing: Future[None] | None = None
        for number in mine:
            if is_done(folder, number):  # an idle rank made it
                continue
            made = samples_of(number)
            if writing is not None:
                writing.result()  # at most one shard waits in memory; a full disk ends the phase here
            writing = writer.submit(write, number, *made)
        if writing is not None:
            writing.result()
        known, since, pause = others(), time.monotonic(), 0.02
        while known:
            if should_stop():
                raise Interrupted("stopped while other ranks were sampling; finished shards are kept")
            if time.monotonic() - since < max(PATIENCE, 2 * slowest):
                time.sleep(pause)
                pause = min(1.5 * pause, POLL)
            else:
                number = known.pop(part.index % len(known))  # idle ranks begin with different shards
                log.warning("%s: no other rank has finished shard %d: it is made here", title, number)
                write(number, *samples_of(number))
            now = others()
            if len(now) < len(known):  # another rank is at work
                since = time.monotonic()
            known = now
        return round(progress.done)
