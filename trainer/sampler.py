"""Samplers as pure functions: (denoise, noise, sigmas) -> samples. They know no rank, no path and no configuration.

    heun       EDM's second-order deterministic sampler (Karras et al. 2022, algorithm 1): 2 steps - 1 network calls
    euler      the same with first-order steps
    ddim       deterministic DDIM (Song et al. 2020, arXiv 2010.02502): in this parametrization an Euler step in sigma
    ddpm       ancestral sampling (Ho et al. 2020) with the posterior variance: steps network calls, fresh noise each

The state is float64 and the network sees float32, as in EDM. Fresh noise comes in as a function of the step, so that
sample i is the same whatever batch it is in.

B batch; `...` the shape of a sample; sigmas float64 [steps + 1], falling, the last one 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from entroloop.trainer.diffusion import Denoiser, Objective, ddpm_sampling_sigmas, karras_sigmas

FreshNoise = Callable[[int], Tensor]  # step -> standard normal [B, ...]
SamplerName = Literal["heun", "euler", "ddim", "ddpm"]


class SampleConfig(BaseModel):
    """How a generation is sampled.

    sampler     `heun`, `euler`, `ddim` or `ddpm`
    steps       noise levels; Heun calls the network 2 steps - 1 times an image, the others `steps` times
    guidance    weight w of classifier-free guidance: D = D_null + w (D_label - D_null); 1 is none
    labels      of a conditional model's samples: every class equally often, or as in the training set
    batch       images a network call; part of the sampling plan, since it may change the last bits
    shard_size  images a shard
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sampler: SamplerName = "heun"
    steps: int = Field(18, ge=1)
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)
    guidance: float = Field(1.0, ge=0)
    labels: Literal["balanced", "training"] = "balanced"
    batch: int = Field(256, ge=1)
    shard_size: int = Field(1024, ge=1)

    @property
    def nfe(self) -> int:
        """Network calls an image (guidance doubles their cost)."""
        calls = 2 * self.steps - 1 if self.sampler == "heun" else self.steps
        return calls * (2 if self.guidance != 1 else 1)


def noise_levels(config: SampleConfig, objective: Objective) -> Tensor:
    """The sampler's sigmas: DDPM models are sampled at the levels they were trained on, EDM models at EDM's."""
    if objective == "ddpm":
        return ddpm_sampling_sigmas(config.steps)
    return karras_sigmas(config.steps, config.sigma_min, config.sigma_max, config.rho)


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


def heun(denoise: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """Second-order steps, an Euler step at the end: float64 [B, ...]."""
    x = noise.double() * sigmas[0]
    for sigma, after in itertools.pairwise(sigmas):
        d = _direction(denoise, x, sigma, labels)
        step = x + (after - sigma) * d
        if after > 0:
            step = x + (after - sigma) * 0.5 * (d + _direction(denoise, step, after, labels))
        x = step
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


def draw(
    sampler: SamplerName,
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    fresh_noise: FreshNoise,
) -> Tensor:
    """Samples in the data's [-1, 1] scale, unclamped: float64 [B, ...]."""
    if sampler == "heun":
        return heun(denoise, noise, sigmas, labels)
    if sampler == "ddpm":
        return ancestral(denoise, noise, sigmas, labels, fresh_noise)
    return euler(denoise, noise, sigmas, labels)
