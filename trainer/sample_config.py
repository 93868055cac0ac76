"""How a generation is sampled, as a configuration section."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from entroloop.data.config import PATH, Named, Section
from entroloop.data.errors import UserError
from entroloop.data.paths import expanded
from entroloop.trainer.catalogue import OBJECTIVES, SAMPLERS
from entroloop.trainer.network_config import Precision

if TYPE_CHECKING:
    from torch import Tensor

GuideKind = Literal["autoguidance", "sims", "neon"]


class SampleConfig(Section):
    """How a generation is sampled."""

    sampler: Annotated[str, Named(SAMPLERS)] = "heun"
    """The function that draws samples: built in, of an installed package, or your own."""
    steps: int = Field(18, ge=1)
    """Number of noise levels. Heun calls the network 2 steps - 1 times per image, the others `steps` times."""
    sigma_min: float = Field(0.002, gt=0)
    """Smallest noise level above 0 (objective `edm`)."""
    sigma_max: float = Field(80.0, gt=0)
    """Largest noise level (objective `edm`)."""
    rho: float = Field(7.0, gt=0)
    """Exponent by which the noise levels are spaced (objective `edm`)."""
    temperature: float = Field(1.0, gt=0)
    """Factor of the initial noise, as Glow scales its latents (Kingma and Dhariwal 2018, arXiv 1807.03039); below 1,
    samples are less spread than the model's distribution. The later steps of the sampler do not change."""
    s_churn: float = Field(0.0, ge=0)
    """S_churn of EDM's stochastic sampler (sampler `heun`): fresh noise over all steps together; 0 adds none."""
    s_min: float = Field(0.0, ge=0)
    """Smallest noise level at which churn adds noise."""
    s_max: float | None = Field(None, gt=0)
    """Largest noise level at which churn adds noise; null sets no limit."""
    s_noise: float = Field(1.0, gt=0)
    """Factor by which churn inflates the noise that it adds."""
    guidance: float = Field(1.0, ge=0)
    """Weight w of classifier-free guidance, D = D_null + w (D_label - D_null); 1 is none."""
    guide: Annotated[str | None, PATH] = Field(None, min_length=1)
    """A second network: `previous` (the generation before), `generation_0000` (that generation of the same run), or a
    sealed folder of weights. Generations up to and including the guide's are sampled without a guide."""
    guide_kind: GuideKind = "autoguidance"
    """`autoguidance`: the guide is a weaker network, D = D_guide + w (D - D_guide); `sims`: the guide is the base whose
    samples trained this network, D = (1 + w) D_guide - w D; `neon`: as `sims`, with the weights of the two networks in
    place of their outputs."""
    guide_weight: float | None = Field(None, ge=0)
    """The weight w of the guide."""
    labels: Literal["balanced", "real", "training"] = "balanced"
    """Labels of a conditional model's samples: every class equally often, or as often as in the real data or in this
    generation's training set."""
    precision: Precision = "no"
    """Precision of the network's calls; `no` is float32. The state keeps its precision."""
    compile: bool = False
    """Compile the network with torch.compile."""
    batch: int = Field(256, ge=1)
    """Images per network call. The number is part of the sampling plan, because it may change the last bits."""
    shard_size: int = Field(1024, ge=1)
    """Images per shard."""

    @model_validator(mode="after")
    def _fits_together(self) -> SampleConfig:
        if self.s_churn and not SAMPLERS.facts(self.sampler).churn:
            churned = " or ".join(name for name, facts in SAMPLERS.built_in.items() if facts.churn)
            raise ValueError(f"s_churn={self.s_churn:g} goes with sampler={churned}, not with {self.sampler}")
        if not self.s_churn and (self.s_min or self.s_max is not None or self.s_noise != 1):
            raise ValueError("s_min, s_max and s_noise say how s_churn adds noise, which is 0: set s_churn too")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}")
        if (self.guide is None) != (self.guide_weight is None):
            raise ValueError("guide and guide_weight go together: give both or none of them")
        return self

    @property
    def nfe(self) -> int:
        """Network calls per image: of both networks, and with and without label, if guidance needs them."""
        return self.calls(self.guide is not None)

    def calls(self, guided: bool) -> int:
        """Network calls per image of a generation with a guide, or without one."""
        calls = SAMPLERS.facts(self.sampler).calls(self.steps)
        networks = 2 if guided and self.guide_kind != "neon" else 1
        return calls * networks * (2 if self.guidance != 1 else 1)

    def guide_generation(self, generation: int) -> int | None:
        """The generation of the same run that would guide `generation`; None if the guide is a folder or is not set."""
        if self.guide == "previous":
            return generation - 1
        found = re.fullmatch(r"generation_(\d+)", self.guide or "")
        return int(found[1]) if found else None

    @property
    def guide_folder(self) -> Path | None:
        """The guide's folder, with ~ and variables replaced; None if the guide is a generation or is not set."""
        inside = self.guide is None or self.guide_generation(0) is not None
        return None if inside else Path(expanded(str(self.guide)))

    @property
    def churn(self) -> Churn | None:
        if not self.s_churn:
            return None
        return Churn(self.s_churn, self.s_min, math.inf if self.s_max is None else self.s_max, self.s_noise)


@dataclass(frozen=True)
class Churn:
    """S_churn, S_min, S_max and S_noise of EDM's algorithm 2."""

    amount: float
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """The relative increase of sigma before a step: sigma becomes (1 + gamma) sigma."""
        return min(self.amount / steps, math.sqrt(2) - 1) if self.low <= sigma <= self.high else 0.0


def check_fits_model(config: SampleConfig, objective: str, labelled: bool) -> None:
    """Raises UserError when `config` cannot sample a model of that objective, trained with or without labels."""
    if config.guidance != 1 and not labelled:
        raise UserError(f"sample.guidance={config.guidance:g}: the model is unconditional: set train.labels=true")
    levels = OBJECTIVES.facts(objective).levels
    if levels is not None and config.steps > levels:
        raise UserError(f"sample.steps={config.steps}: a {objective} model has {levels} noise levels: give no more")


def noise_levels(config: SampleConfig, objective: str) -> Tensor:
    """The sampler's sigmas for a model of that objective, falling, the last one 0: float64 [steps + 1]."""
    sigmas: Tensor = OBJECTIVES.load(objective).sigmas(config.steps, config.sigma_min, config.sigma_max, config.rho)
    return sigmas
