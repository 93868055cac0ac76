"""The `evaluation` section of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from entroloop.data.catalogue import ENCODERS
from entroloop.data.config import Named, Section
from entroloop.eval.catalogue import MEASURES


def _own(name: str) -> str:
    if MEASURES.check(name) in MEASURES.built_in:
        raise ValueError(f"{name} is built in and always computed: list only your own measures")
    return name


class EvaluationConfig(Section):
    """The measures of every generation: in which features, and on how many samples."""

    encoders: tuple[Annotated[str, Named(ENCODERS)], ...] = Field(("pixel", "classifier"), min_length=1)
    """Feature spaces to measure in."""
    measures: tuple[Annotated[str, AfterValidator(_own)], ...] = ()
    """Your own measures as `module:attribute`, computed beside the built-in ones."""
    generations: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """The generations to measure, for example `[0, 1, 3, 7]`; null: all of them. Include 0, whose row also contains the
    measures of real data. When a run is resumed, the list may change for generations that the run has not reached."""
    samples: int | None = Field(None, ge=2)
    """Number of generated samples to measure: the first ones, never a selection; null: as many as training samples."""
    entropy_size: int | None = Field(None, ge=2)
    """Training samples in the entropy estimate, which depends on their number; null: N."""

    def measures_generation(self, generation: int) -> bool:
        return self.generations is None or generation in self.generations
