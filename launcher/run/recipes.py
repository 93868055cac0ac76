"""Pure functions of a run's steps: which step comes next, which folders it reads, and which values decide its result.

    prepare -> for every generation: select -> train -> sample -> encode -> evaluate

The state of a run is the set of its sealed folders and nothing else. All of these functions are computed from PHASES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from entroloop.data import files
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL
from entroloop.launcher.run.phases import BY_NAME, PHASES

if TYPE_CHECKING:
    from entroloop.launcher.config import Config

ORDER = {phase.name: number for number, phase in enumerate(PHASES)}


def steps(generations: int) -> Iterator[Step]:
    """All steps of a run, in order."""
    yield from _once()
    for generation in range(generations):
        for phase in PHASES:
            if not phase.once:
                yield Step(generation, phase.name)


def _once() -> list[Step]:
    return [Step(REAL, phase.name) for phase in PHASES if phase.once]


def next_step(sealed: Callable[[Step], bool], generations: int) -> Step | None:
    """The first step that is not sealed; None when the run is finished."""
    return next((step for step in steps(generations) if not sealed(step)), None)


def is_sealed(layout: Layout) -> Callable[[Step], bool]:
    return lambda step: manifest.is_sealed(layout.of(step))


def inputs(config: Config, step: Step) -> list[Step]:
    """Every earlier step whose sealed folders a step reads, in order.

    Every step reads the results of the phases that are done once. For example, the classes of the real data decide the
    shape of a network.
    """
    once = [s for s in _once() if step.generation != REAL]
    found = {*once, *BY_NAME[step.phase].reads(config.at(step.generation), step.generation)}
    return sorted(found, key=lambda s: (s.generation, ORDER[s.phase]))


def recipes(config: Config) -> dict[Step, str]:
    """Returns for every step a digest of all that decides the step's result.

    Two runs whose digests are equal seal the same bytes on the same machine, with the same numbers of threads and
    processes. A digest covers the configuration values that decide the step and the recipes of the steps it reads.
    """
    found: dict[Step, str] = {}
    for step in steps(config.generations):
        found[step] = files.digest(
            {
                "step": str(step),
                "decides": BY_NAME[step.phase].decides(config.at(step.generation), step.generation),
                "inputs": [found[s] for s in inputs(config, step)],
            }
        )
    return found


def parents(config: Config, layout: Layout, step: Step) -> dict[str, Path]:
    """Every sealed folder that a step reads, by its name in the seal's `made_from`.

    `real` is the real data set and `classifier` the classifier fitted to it. A phase names its folders from outside the
    run. Every other folder has the name of its step. The seal of the classifier names `real` alone.
    """
    found = {"real": real_folder(config, layout)}
    if "classifier" in config.encoders:
        found["classifier"] = layout.classifier
    found |= {str(s): layout.of(s) for s in inputs(config, step)}
    return found | BY_NAME[step.phase].outside(config, step.generation)


def real_folder(config: Config, layout: Layout) -> Path:
    """The folder of the real data: the run's own import, or the sealed folder that the configuration names."""
    return layout.images if manifest.is_sealed(layout.images) else Path(config.data.located)
