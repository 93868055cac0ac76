"""How training sets are chosen, as a configuration section."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationInfo, field_validator

from entroloop.data.catalogue import ENCODERS
from entroloop.selection.catalogue import DISTANCES, STRATEGIES

OF_A_RUN = ("trim", "trim_k", "per_class")  # arguments of `select` that are options of a run, too


class SelectionConfig(BaseModel, extra="forbid", frozen=True):
    """The section `selection` of a run's configuration.

    strategy  which of the candidates are chosen
    metric    `euclidean`, `cosine` or `whitened`
    encoder   the feature space whose distances count; each of the three may be the user's own (`module:attribute`)
    options   of the strategy, and of every strategy `trim`, `trim_k` and `per_class` (see `select`)
    """

    strategy: Annotated[str, AfterValidator(STRATEGIES.check)] = "greedy"
    metric: Annotated[str, AfterValidator(DISTANCES.check)] = "euclidean"
    encoder: Annotated[str, AfterValidator(ENCODERS.check)] = "classifier"
    options: dict[str, float | int | str | bool] = {}

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for option, key in (("metric", "selection.metric"), ("seed", "seed")):
            if option in options:
                raise ValueError(f"{option}: set {key}")
        if options and "strategy" in info.data:  # else that is wrong
            from entroloop.selection.choose import check_options  # needs torch

            check_options(info.data["strategy"], options, also=OF_A_RUN)
        return options

    @property
    def by_class(self) -> bool:
        """Whether the classes of the candidates decide the choice."""
        return STRATEGIES.facts(self.strategy).by_class or bool(self.options.get("per_class"))
