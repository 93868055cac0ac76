"""Which network guides the sampling of a generation: `sample.guide` and the run's folder -> a folder of weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from entroloop.data import manifest
from entroloop.data.errors import UserError
from entroloop.launcher.config import Config
from entroloop.launcher.phases import Layout, Step


@dataclass(frozen=True)
class Guide:
    """The guide of one generation.

    folder     its sealed weights; None where the generation is sampled without a guide
    made_from  its entry in the seal of the samples
    """

    folder: Path | None = None
    made_from: dict[str, str] = field(default_factory=dict)


def is_guided(config: Config, generation: int) -> bool:
    """Whether a generation is sampled with a guide: one of the same run must come before it."""
    number = config.sample.guide_generation(generation)
    return config.sample.guide is not None and (number is None or 0 <= number < generation)


def guide_of(config: Config, layout: Layout, generation: int) -> Guide:
    """The guide of one generation.

    Raises UserError when there cannot be one: a generation the run does not have, or weights that are not sealed.
    """
    name = config.sample.guide
    if name is None:
        return Guide()
    number = config.sample.guide_generation(generation)
    if number is None:
        folder = Path(name)
        try:
            return Guide(folder, {"guide": manifest.read(folder).digest})
        except UserError as error:
            raise UserError(f"sample.guide={name}: {error}; or give previous, or generation_0000") from error
    if number >= config.generations:
        raise UserError(f"sample.guide={name}: the run has generations 0 … {config.generations - 1}")
    if not is_guided(config, generation):
        return Guide()
    step = Step(number, "train")
    folder = layout.of(step)
    return Guide(folder, {str(step): manifest.read(folder).digest})
