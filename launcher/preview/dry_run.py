"""Describes a run without running it: phases, sizes, network calls and disk use. Needs no GPU.

Facts that depend on the source are included where the source can be opened.
"""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterator

from entroloop.data.errors import UserError
from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.store.shards import REAL
from entroloop.launcher.config import Config
from entroloop.launcher.preview.disk import LISTED, RealFacts, describe_disk, listed, source_of
from entroloop.launcher.preview.memory import describe_network
from entroloop.launcher.run.machine import check_machine, check_space_ahead
from entroloop.launcher.run.phases import BY_NAME, PHASES
from entroloop.launcher.run.phases.sample import is_guided
from entroloop.launcher.run.ready import check_ready
from entroloop.launcher.run.recipes import is_sealed, steps
from entroloop.launcher.run.resume import check_folder
from entroloop.trainer.train_config import micro_batches

log = logging.getLogger(__name__)


def dry_run(config: Config) -> None:
    """Prints the forecast. Raises UserError where the run would refuse to begin on this machine.

    What the configuration gets wrong is refused before the forecast, and what this machine lacks after it.
    """
    check_folder(config, Layout(config.run_folder))
    ahead = {step.phase for step in _ahead(config)}
    real, absent = _opened(config)
    print(_described(config, real))
    if absent is not None and ahead:
        raise absent
    check_machine(config, [BY_NAME[name] for name in ahead], real.shape if real else None)
    check_space_ahead(config, real, [*_ahead(config)])


def describe(config: Config) -> str:
    """Returns a text with one line per phase and the totals.

    Raises UserError where the configuration or the real data do not serve. Checks that need the source are left out
    where this machine cannot open it.
    """
    return _described(config, _opened(config)[0])


def _opened(config: Config) -> tuple[RealFacts | None, UserError | None]:
    """A description of the real data, or why they cannot be opened."""
    try:
        return source_of(config), None
    except UserError as error:
        return None, error


def _ahead(config: Config) -> Iterator[Step]:
    """Steps that are not sealed, up to and including one generation of which nothing is sealed."""
    sealed = is_sealed(Layout(config.run_folder))
    for generation, group in itertools.groupby(steps(config.generations), key=lambda step: step.generation):
        every = list(group)
        unsealed = [step for step in every if not sealed(step)]
        yield from unsealed
        if generation != REAL and len(unsealed) == len(every):
            return


def _described(config: Config, source: RealFacts | None) -> str:
    check_ready(config, PHASES, source)
    lines = [
        f"run {config.run_folder}: {config.loop.paradigm}, {config.selection.strategy} in {config.selection.encoder} "
        f"space, N = {config.data.size}, c = {config.loop.candidates}, {config.generations} generations, seed "
        f"{config.seed}"
    ]
    micro_batches(config.train, config.slurm.of("train").ranks)
    lines += [_forecast(config, PREPARE), *describe_network(config)]
    for generation in listed(config.generations):
        if generation > LISTED:
            lines.append(f"generations {LISTED} … {generation - 1}  likewise")
        lines += [_forecast(config, Step(generation, phase.name)) for phase in PHASES if not phase.once]
    trained = config.generations * config.train.images
    # Generations up to the guide's own are sampled without a guide.
    unguided = bisect.bisect_left(range(config.generations), True, key=lambda g: is_guided(config, g))
    calls = unguided * config.sample.calls(False) + (config.generations - unguided) * config.sample.calls(True)
    lines.append(
        f"in all: {trained:,} images forward and backward, {config.samples * calls:,} network calls on single images "
        "in sampling"
    )
    lines += describe_disk(config, source)
    return "\n".join(lines)


def _forecast(config: Config, step: Step) -> str:
    where = "real data" if step.generation == REAL else f"generation {step.generation}"
    return f"{where:<14} {step.phase:<9} {BY_NAME[step.phase].forecast(config, step.generation)}"
