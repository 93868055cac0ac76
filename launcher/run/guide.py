"""Which network guides the sampling of a generation: `sample.guide` and the run's folder -> a folder of weights."""

from __future__ import annotations

from pathlib import Path

from entroloop.data.errors import UserError
from entroloop.data.store import manifest
from entroloop.launcher.config import Config
from entroloop.launcher.run.steps import Layout, guide_step


def is_guided(config: Config, generation: int) -> bool:
    """Whether a generation is sampled with a guide: one of the same run must come before it."""
    outside = config.sample.guide is not None and config.sample.guide_generation(generation) is None
    return outside or guide_step(config, generation) is not None


def guide_of(config: Config, layout: Layout, generation: int) -> Path | None:
    """The sealed weights that guide one generation; None where the generation is sampled without a guide.

    Raises UserError when there cannot be one: a generation the run does not have, or weights that are not sealed.
    """
    name = config.sample.guide
    if name is None:
        return None
    number = config.sample.guide_generation(generation)
    if number is None:
        try:
            manifest.read(Path(name))
        except UserError as error:
            raise UserError(f"sample.guide={name}: {error}; or give previous, or generation_0000") from error
        return Path(name)
    if number >= config.generations:
        raise UserError(f"sample.guide={name}: the run has generations 0 … {config.generations - 1}")
    step = guide_step(config, generation)
    if step is None:
        return None
    manifest.read(layout.of(step))
    return layout.of(step)
