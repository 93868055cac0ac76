"""Describes a run without running it: phases, sizes, network calls and disk use. Needs no GPU.

Facts that depend on the source are included where the source can be opened.
"""

from __future__ import annotations

import logging

from entroloop.data.runfolder import Step
from entroloop.data.store.shards import REAL
from entroloop.launcher.config import Config
from entroloop.launcher.preview.disk import describe_disk
from entroloop.launcher.preview.memory import describe_network, processes
from entroloop.launcher.run.phases import BY_NAME, PHASES
from entroloop.launcher.run.phases.sample import is_guided
from entroloop.launcher.run.ready import check_ready
from entroloop.launcher.run.recipes import steps
from entroloop.trainer.train_config import micro_batches

log = logging.getLogger(__name__)


def describe(config: Config) -> str:
    """Returns a text with one line per phase and the totals.

    Raises UserError where the run would refuse to begin. Checks that need the source are left out where this machine
    cannot open it.
    """
    source = check_ready(config, PHASES, look=True)
    lines = [
        f"run {config.run_folder}: {config.loop.paradigm}, {config.selection.strategy} in {config.selection.encoder} "
        f"space, N = {config.data.size}, c = {config.loop.candidates}, {config.generations} generations, seed "
        f"{config.seed}"
    ]
    micro_batches(config.train, processes(config))
    first, *others = (_forecast(config, step) for step in steps(config.generations))
    lines += [first, *describe_network(config), *others]
    trained = config.generations * config.train.images
    calls = config.samples * sum(config.sample.calls(is_guided(config, g)) for g in range(config.generations))
    lines.append(
        f"in all: {trained:,} images forward and backward, {calls:,} network calls on single images in sampling"
    )
    lines += describe_disk(config, source)
    return "\n".join(lines)


def _forecast(config: Config, step: Step) -> str:
    where = "real data" if step.generation == REAL else f"generation {step.generation}"
    return f"{where:<14} {step.phase:<9} {BY_NAME[step.phase].forecast(config, step.generation)}"
