"""How training sets are chosen, as a configuration section."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from entroloop.data.catalogue import ENCODERS
from entroloop.data.config import Named, Section
from entroloop.selection.catalogue import DISTANCES, STRATEGIES
from entroloop.selection.options import OF_A_RUN, check_options


def _known_options(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    for option, key in (("metric", "selection.metric"), ("seed", "seed")):
        if option in options:
            raise ValueError(f"{option}: set {key}")
    if options and "strategy" in info.data:  # otherwise the strategy itself was refused
        check_options(info.data["strategy"], options, also=OF_A_RUN)
    return options


class SelectionConfig(Section):
    """How the training samples of a generation are chosen from its pool."""

    strategy: Annotated[str, Named(STRATEGIES)] = "herding"
    """The strategy that chooses samples: built in, of an installed package, or your own."""
    metric: Annotated[str, Named(DISTANCES)] = "euclidean"
    """The distance of two samples in the feature space."""
    encoder: Annotated[str, Named(ENCODERS)] = "classifier"
    """The feature space in which distances are computed."""
    options: Annotated[dict[str, float | int | str | bool], AfterValidator(_known_options)] = Field({})
    """Options of the strategy by name, and `trim`, `trim_k` and `per_class` of `select`."""

    @property
    def by_class(self) -> bool:
        """Whether the choice depends on the classes of the candidates."""
        return STRATEGIES.facts(self.strategy).by_class or bool(self.options.get("per_class"))
