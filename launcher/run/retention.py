"""Removes files that the configuration does not keep and no later phase can read.

Config + sealed steps  ->  removable  ->  apply: removes files of sealed folders and keeps their seals
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.launcher.config import Config
from entroloop.launcher.run.phases import BY_NAME
from entroloop.launcher.run.phases.sample import SAMPLE
from entroloop.launcher.run.recipes import inputs, steps

log = logging.getLogger(__name__)


def _goes(config: Config, step: Step) -> bool:
    removable = BY_NAME[step.phase].removable
    return removable is not None and removable(config)


def removable(config: Config, sealed: Callable[[Step], bool]) -> list[Step]:
    """Sealed steps that no unsealed step reads, of the phases whose files `keep` allows removing, in order.

    The generation after the last counts as unsealed because a finished run may be continued.
    """
    ahead = [
        step for step in steps(config.generations + 1) if step.generation == config.generations or not sealed(step)
    ]
    needed = {read for step in ahead for read in inputs(config, step)}
    if config.data.selected == "index":  # samples stay as long as a training set refers to them
        chosen_from = (inputs(config, Step(g, "select")) for g in range(config.generations))
        needed |= {step for read in chosen_from for step in read if step.phase == SAMPLE.name}
    return [step for step in steps(config.generations) if _goes(config, step) and sealed(step) and step not in needed]


def names_of(layout: Layout, step: Step) -> list[str]:
    """The large files of a step that are removed: all sample shards but the first, and feature blocks."""
    large = [e.name for e in manifest.read(layout.of(step)).files if not e.name.endswith(".json")]
    return large[BY_NAME[step.phase].spared :]


def apply(config: Config, layout: Layout) -> None:
    """Removes the files of all removable steps, and the checkpoints of finished trainings if `keep` says so.

    Looks only at sealed steps, so the next attempt removes what a killed attempt did not.
    """
    if config.keep.checkpoints == "none":
        for step in steps(config.generations):
            if BY_NAME[step.phase].trains and manifest.is_sealed(layout.of(step)):
                for old in layout.checkpoints(step.generation).glob("images-*.pt"):
                    old.unlink(missing_ok=True)
    if not any(_goes(config, step) for step in steps(1)):
        return
    freed = sum(
        manifest.remove(layout.of(step), names_of(layout, step))
        for step in removable(config, lambda step: manifest.is_sealed(layout.of(step)))
    )
    if freed:
        log.info("%-13s  %-8s  %10s  removed by keep", "", "disk", size(freed))


def size(count: float) -> str:
    """Formats bytes for people: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
