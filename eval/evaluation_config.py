"""What is measured, as a configuration section."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, field_validator

from entroloop.data.catalogue import ENCODERS
from entroloop.eval.catalogue import MEASURES


class EvaluationConfig(BaseModel, extra="forbid", frozen=True):
    """The section `evaluation` of a run's configuration."""

    encoders: tuple[Annotated[str, AfterValidator(ENCODERS.check)], ...] = Field(("pixel", "classifier"), min_length=1)
    """Feature spaces to measure in."""
    measures: tuple[str, ...] = ()
    """The user's own measures (`module:attribute`), taken beside the built-in ones."""
    samples: int | None = Field(None, ge=2)
    """Generated images 0 … samples - 1 are measured, never a selection of them; None: as many as training images."""
    entropy_size: int | None = Field(None, ge=2)
    """Training images in the entropy estimate, which depends on their number; None: N of the first generation."""

    @field_validator("measures")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            MEASURES.check(name)
            if name in MEASURES.built_in:
                raise ValueError(f"{name} is built in and always taken: list only your own")
        return names
