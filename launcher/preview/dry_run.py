"""What a run will do, without doing it: phases, sizes, network calls and disk. Needs no GPU.

What depends on the source is told where the source can be opened.
"""

from __future__ import annotations

import logging

import torch

from entroloop.launcher.config import Config
from entroloop.launcher.preview.disk import describe_disk
from entroloop.launcher.preview.memory import describe_network, processes
from entroloop.launcher.run.guide import is_guided
from entroloop.launcher.run.ready import check_ready
from entroloop.launcher.run.steps import FOLDERS
from entroloop.selection.pool import pool_of, pool_size, training_size
from entroloop.trainer.train_config import micro_batches

log = logging.getLogger(__name__)


def describe(config: Config) -> str:
    """A text with one line a phase and the totals.

    Raises UserError for all that the run would refuse before it begins, as far as the source can be opened here.
    """
    source = check_ready(config, list(FOLDERS), torch.device("cpu"), look=True)
    n, c = config.data.size, config.loop.candidates
    lines = [
        f"run {config.run_folder}: {config.loop.paradigm}, {config.selection.strategy} in {config.selection.encoder} "
        f"space, N = {n}, c = {c}, {config.generations} generations, seed {config.seed}",
        "real data      prepare   "
        f"{config.data.source} -> {n} training, {config.data.heldout} held-out, {config.data.labelled} labelled images",
    ]
    micro_batches(config.train, processes(config))
    lines += describe_network(config)
    trained = sampled = 0
    for g in range(config.generations):
        size = training_size(config.loop, g, n)
        if g == 0:
            what = f"{n} real images"
        else:
            pool = pool_of(config.loop, g, n)
            candidates = pool_size(config.loop, pool.pool, n)
            kept = f", beside the {training_size(config.loop, g - 1, n)} of generation {g - 1}" if pool.keep else ""
            fresh = f", {len(pool.fresh)} fresh real images" if pool.fresh else ""
            what = f"{'all' if config.loop.all_candidates else pool.choose} of {candidates} candidates{fresh}{kept}"
        trained += config.train.images
        calls = config.sample.calls(is_guided(config, g))
        sampled += config.samples * calls
        images = config.train.images
        lines += [
            f"generation {g:<3} select    {what}",
            f"generation {g:<3} train     {images / 1000:,.1f} kimg on {size} images, "
            f"{images // config.train.batch:,} steps of {config.train.batch}",
            f"generation {g:<3} sample    {config.samples} images x {calls} NFE ({config.sample.sampler})",
            f"generation {g:<3} encode    {config.samples} images by {', '.join(config.encoders)}",
            f"generation {g:<3} evaluate  samples 0 … {(config.evaluation.samples or n) - 1}",
        ]
    lines.append(
        f"in all: {trained:,} images forward and backward, {sampled:,} network calls on single images in sampling"
    )
    lines += describe_disk(config, source)
    return "\n".join(lines)
