"""The row of measures of one generation: the evaluate phase writes it, and the report reads it.

    measured numbers, by encoder  ->  Row  ->  one line of JSON  ->  Row

`flat` makes the JSON object of one set of numbers that `measure` and `select` print. This module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt

Value = FiniteFloat | None  # None: undefined
Origin = Annotated[str, Field(pattern="^(real|[0-9]+)$")]  # "real", or the number of a generation


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class EncoderContext(_Model):
    """What the measures in one encoder's features depend on. The titles are the words of the report."""

    digest: str | None = Field(None, title="digest of the weights")  # and of the preprocessing
    resize: str | None = Field(None, title="resize")
    dimensions: int | None = Field(None, title="features per image")
    mirrored_copies_count: bool = Field(False, title="mirrored copies count as copies")
    k: dict[str, int] = Field({}, title="nearest neighbours")  # by measure
    entropy_n: int | None = Field(None, title="images in the entropy estimate")
    entropy_k: int | None = Field(None, title="neighbour in the entropy estimate")
    entropy_floored: int | None = Field(None, title="distances raised to the floor in the entropy estimate")
    generated_entropy_floored: int | None = Field(None, title="the same in the estimate of the generated images")
    top_eigenvalues: list[FiniteFloat] = []  # of the generated features' covariance, largest first
    reference_generalization_score: FiniteFloat | None = Field(None, title="generalization score of held-out images")
    memorized_calibrated_distance: FiniteFloat | None = Field(None, title="distance that counts as memorized")
    ct: dict[str, int] = Field({}, title="C_T")  # numbers of principal components and cells


class Context(_Model):
    """What all measures of a row depend on: numbers of images, the seed of subsets, and each encoder."""

    n_generated: int | None = Field(None, title="generated images")
    n_training: int | None = Field(None, title="training images")
    n_reference: int | None = Field(None, title="held-out images")
    seed: int | None = Field(None, title="seed of subsets")
    entropy_size: int | None = Field(None, title="images per entropy estimate, at most")
    encoders: dict[str, EncoderContext] = {}


class Row(_Model):
    """The measures of one generation.

    generation  None for the baseline, which measures held-out real images instead of generated images
    measures    by encoder and name; None where a value is undefined
    provenance  share of the training set by origin: `real`, or the number of the generation that drew the images
    baseline    the baseline row, in the row of generation 0 only
    """

    generation: NonNegativeInt | None
    measures: dict[str, dict[str, Value]]
    provenance: dict[Origin, Annotated[FiniteFloat, Field(ge=0, le=1)]]
    context: Context = Context()
    baseline: Row | None = None

    @staticmethod
    def from_json(text: str | bytes) -> Row:
        """Raises pydantic's ValidationError for a row that does not fit, and ValueError for text that is not JSON."""
        return Row.model_validate(json.loads(text))

    def as_dict(self) -> dict[str, Any]:
        """The content that `from_json` reads, without the fields that were never set."""
        return self.model_dump(exclude_unset=True)

    def as_json(self) -> bytes:
        """One line of JSON with its newline."""
        return json.dumps(self.as_dict(), sort_keys=True, allow_nan=False).encode() + b"\n"

    def value(self, encoder: str, measure: str) -> float | None:
        """A measure, None where it is missing or undefined. `real_share` is the same for every encoder."""
        if measure == "real_share":
            return float(self.provenance.get("real", 0.0))
        return self.measures.get(encoder, {}).get(measure)

    def encoder(self, name: str) -> EncoderContext:
        """The context of an encoder's measures; empty when the row has none."""
        return self.context.encoders.get(name, EncoderContext())


def flat(values: Mapping[str, float | None], context: Mapping[str, Any]) -> dict[str, Any]:
    """One JSON object: each number under its name, None where undefined, everything else under `context`."""
    return {**finite(values), "context": dict(context)}


def finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """The same values, with None in place of NaN and infinity."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
