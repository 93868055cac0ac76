"""Samplers as pure functions: (denoise, noise, sigmas) -> samples. They know no rank, no path and no configuration.

    heun          EDM's second-order sampler (Karras et al. 2022, arXiv 2206.00364): 2 steps - 1 network calls; without
                  churn algorithm 1, with it the stochastic algorithm 2
    euler         the same with first-order steps
    ddim          deterministic DDIM (Song et al. 2020, arXiv 2010.02502): here an Euler step in sigma
    ddpm          ancestral sampling (Ho et al. 2020) with the posterior variance: steps network calls, fresh noise each
    dpm-solver++  second-order multistep DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) by diffusers' scheduler: steps
                  network calls

The state is float64 (diffusers' scheduler: float32) and the network sees float32, as in EDM. Fresh noise comes in as a
function of the step, so that sample i is the same whatever batch it is in.

B batch; `...` the shape of a sample; sigmas float64 [steps + 1], falling, the last one 0.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DPMSolverMultistepScheduler
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.trainer.diffusion import DDPM_STEPS, Denoiser, Objective, ddpm_sampling_sigmas, karras_sigmas
from entroloop.trainer.network import Precision

FreshNoise = Callable[[int], Tensor]  # step -> standard normal [B, ...]
SamplerName = Literal["heun", "euler", "ddim", "ddpm", "dpm-solver++"]
GuideKind = Literal["autoguidance", "sims", "neon"]


class SampleConfig(BaseModel):
    """How a generation is sampled.

    sampler       `heun`, `euler`, `ddim`, `ddpm` or `dpm-solver++`
    steps         noise levels; Heun calls the network 2 steps - 1 times an image, the others `steps` times
    s_churn       of EDM's stochastic sampler (sampler=heun): noise added anew, in all steps together; 0 adds none.
                  `s_min` … `s_max` (None: no limit) are the noise levels where it is added, `s_noise` inflates it
    guidance      weight w of classifier-free guidance: D = D_null + w (D_label - D_null); 1 is none
    guide         a second network: `previous` (the generation before), `generation_0000` (that one of the same run), or
                  a sealed folder of weights. Generations that come no later than it are sampled without it
    guide_kind    `autoguidance`: the guide is a weaker network, D = D_guide + w (D - D_guide);
                  `sims`: the guide is the base whose samples trained this one, D = (1 + w) D_guide - w D;
                  `neon`: as sims, with the weights of the two networks in place of what they return
    guide_weight  that w
    labels        of a conditional model's samples: every class equally often, or as often as in the real data or in
                  this generation's training set
    precision     of the network's calls: `no` is float32; the state keeps its precision
    compile       torch.compile the network
    batch         images a network call; part of the sampling plan, since it may change the last bits
    shard_size    images a shard
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sampler: SamplerName = "heun"
    steps: int = Field(18, ge=1)
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)
    s_churn: float = Field(0.0, ge=0)
    s_min: float = Field(0.0, ge=0)
    s_max: float | None = Field(None, gt=0)
    s_noise: float = Field(1.0, gt=0)
    guidance: float = Field(1.0, ge=0)
    guide: str | None = Field(None, min_length=1)
    guide_kind: GuideKind = "autoguidance"
    guide_weight: float | None = Field(None, ge=0)
    labels: Literal["balanced", "real", "training"] = "balanced"
    precision: Precision = "no"
    compile: bool = False
    batch: int = Field(256, ge=1)
    shard_size: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> SampleConfig:
        if self.s_churn and self.sampler != "heun":
            raise ValueError(f"s_churn={self.s_churn:g} goes with sampler=heun, not with {self.sampler}")
        if not self.s_churn and (self.s_min or self.s_max is not None or self.s_noise != 1):
            raise ValueError("s_min, s_max and s_noise say how s_churn adds noise, which is 0: set s_churn too")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min:g} must be below sigma_max={self.sigma_max:g}")
        if (self.guide is None) != (self.guide_weight is None):
            raise ValueError("guide and guide_weight go together: give both or none of them")
        return self

    @property
    def nfe(self) -> int:
        """Network calls an image, those of both networks and with and without label where guidance needs them."""
        return self.calls(self.guide is not None)

    def calls(self, guided: bool) -> int:
        """The same for a generation that has a guide, or has none."""
        calls = 2 * self.steps - 1 if self.sampler == "heun" else self.steps
        networks = 2 if guided and self.guide_kind != "neon" else 1
        return calls * networks * (2 if self.guidance != 1 else 1)

    def guide_generation(self, generation: int) -> int | None:
        """Which generation of the same run would guide this one; None where the guide is a folder or there is none."""
        if self.guide == "previous":
            return generation - 1
        found = re.fullmatch(r"generation_(\d+)", self.guide or "")
        return int(found[1]) if found else None

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
        """By how much, relative to itself, sigma is raised before a step."""
        return min(self.amount / steps, math.sqrt(2) - 1) if self.low <= sigma <= self.high else 0.0


def check_fits_model(config: SampleConfig, objective: Objective, labelled: bool) -> None:
    """Raises UserError where a model of that objective, trained with or without labels, cannot be sampled so."""
    if config.guidance != 1 and not labelled:
        raise UserError(f"sample.guidance={config.guidance:g}: the model is unconditional: set train.labels=true")
    noise_levels(config, objective)


def noise_levels(config: SampleConfig, objective: Objective) -> Tensor:
    """The sampler's sigmas: DDPM models are sampled at the levels they were trained on, EDM models at EDM's.

    Raises UserError when more levels are asked for than a DDPM model has.
    """
    if objective == "ddpm":
        if config.steps > DDPM_STEPS:
            raise UserError(f"sample.steps={config.steps}: a ddpm model has {DDPM_STEPS} noise levels: give no more")
        return ddpm_sampling_sigmas(config.steps)
    return karras_sigmas(config.steps, config.sigma_min, config.sigma_max, config.rho)


def clipped(denoise: Denoiser) -> Denoiser:
    """Estimates kept within [-1, 1], as diffusers' DDPM schedulers and so the paper's sampler keep those of images.

    Of guided estimates it comes last. Vectors have no such bounds: clipping would take from their variance.
    """

    def call(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return denoise(x, sigma, labels).clamp(-1, 1)

    return call


def guided(denoise: Denoiser, weight: float, null_label: int) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598); `null_label` is the class of no class."""

    def call(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        null = denoise(x, sigma, torch.full_like(labels, null_label))
        return null + weight * (denoise(x, sigma, labels) - null)

    return call


def _direction(denoise: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """dx/dsigma of the probability-flow ODE: (x - D(x)) / sigma."""
    return (x - denoise(x.float(), sigma.float(), labels).double()) / sigma


def heun(
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    churn: Churn | None = None,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Second-order steps, an Euler step at the end: float64 [B, ...].

    With `churn`, each step first raises the noise from sigma to (1 + gamma) sigma with fresh noise (algorithm 2).
    """
    x = noise.double() * sigmas[0]
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        gamma = churn.gamma(float(sigma), len(sigmas) - 1) if churn is not None else 0.0
        if churn is not None and gamma > 0:
            assert fresh_noise is not None
            raised = sigma * (1 + gamma)
            x = x + (raised.square() - sigma.square()).sqrt() * churn.noise * fresh_noise(step).double()
            sigma = raised
        d = _direction(denoise, x, sigma, labels)
        there = x + (after - sigma) * d
        if after > 0:
            there = x + (after - sigma) * 0.5 * (d + _direction(denoise, there, after, labels))
        x = there
    return x


def euler(denoise: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """First-order steps of the same ODE, which is deterministic DDIM: float64 [B, ...]."""
    x = noise.double() * sigmas[0]
    for sigma, after in itertools.pairwise(sigmas):
        x = x + (after - sigma) * _direction(denoise, x, sigma, labels)
    return x


def ancestral(
    denoise: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None, fresh_noise: FreshNoise
) -> Tensor:
    """Draws from the posterior q(x_after | x, y = D(x)), whose variance is after^2 (sigma^2 - after^2) / sigma^2.

    noise        standard normal [B, ...]; the first state is drawn with the variance 1 + sigma^2 of nothing but noise
    fresh_noise  step -> standard normal [B, ...]

    Returns float64 [B, ...].
    """
    x = noise.double() * (1 + sigmas[0].square()).sqrt()
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        y = denoise(x.float(), sigma.float(), labels).double()
        ratio = (after / sigma).square()
        x = y + ratio * (x - y)
        if after > 0:
            x = x + (after.square() * (1 - ratio)).sqrt() * fresh_noise(step).double()
    return x


def dpm_solver(denoise: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """DPM-Solver++(2M) of diffusers at our own sigmas, the last step of first order: float64 [B, ...].

    diffusers keeps the state in the variance-preserving scale x / sqrt(1 + sigma^2), in float32.
    """
    steps = len(sigmas) - 1
    scheduler = DPMSolverMultistepScheduler(prediction_type="sample", solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas.double().cpu()
    scheduler.timesteps = torch.arange(steps)  # only counted
    scheduler.set_begin_index(0)
    x = noise.double() * sigmas[0] / (1 + sigmas[0].square()).sqrt()
    for step, sigma in enumerate(sigmas[:-1]):
        y = denoise((x * (1 + sigma.square()).sqrt()).float(), sigma.float(), labels).double()
        x = scheduler.step(y, step, x, return_dict=False)[0]
    return x * (1 + sigmas[-1].square()).sqrt()


def draw(
    sampler: SamplerName,
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    fresh_noise: FreshNoise,
    churn: Churn | None = None,
) -> Tensor:
    """Samples in the data's [-1, 1] scale, unclamped: float64 [B, ...]."""
    match sampler:
        case "heun":
            return heun(denoise, noise, sigmas, labels, churn, fresh_noise)
        case "ddpm":
            return ancestral(denoise, noise, sigmas, labels, fresh_noise)
        case "dpm-solver++":
            return dpm_solver(denoise, noise, sigmas, labels)
        case "euler" | "ddim":
            return euler(denoise, noise, sigmas, labels)
