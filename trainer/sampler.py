"""Samplers as pure functions of tensors that know no rank and no path, and `draw`, which calls a sampler by its name.

    (denoise, noise, sigmas, labels=, fresh_noise=)  ->  samples

    heun          EDM's second-order sampler (Karras et al. 2022, arXiv 2206.00364): 2 steps - 1 network calls; without
                  churn it is algorithm 1, with churn the stochastic algorithm 2
    euler         algorithm 1 with first-order steps: steps network calls
    ddim          deterministic DDIM (Song et al. 2020, arXiv 2010.02502), the same function as euler
    ddpm          ancestral sampling (Ho et al. 2020) with the posterior variance: steps network calls, fresh noise in
                  every step but the last
    dpm-solver++  second-order multistep DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) by diffusers' scheduler: steps
                  network calls

The state is float64 (diffusers' scheduler: float32) and the network's input is float32, as in EDM. Fresh noise is a
function of the step, so that sample i does not depend on the batch that it is in.

Inside their loops, samplers read no number of a tensor on the device: that would make the host wait for the device.

B batch; `...` the shape of a sample; sigmas float64 [steps + 1], falling, the last one 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.trainer.catalogue import SAMPLERS
from entroloop.trainer.diffusion import Denoiser

if TYPE_CHECKING:
    from entroloop.trainer.sample_config import Churn

FreshNoise = Callable[[int], Tensor]  # step -> standard normal [B, ...]


def clipped(denoise: Denoiser) -> Denoiser:
    """Clips estimates to [-1, 1], as diffusers' DDPM schedulers, and so the paper's sampler, clip estimates of images.

    Guided estimates are clipped after guidance. Vectors must not be clipped: they have no such bounds, and clipping
    would reduce their variance.
    """

    def call(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return denoise(x, sigma, labels).clamp(-1, 1)

    return call


def guided(denoise: Denoiser, weight: float, null_label: int) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598); `null_label` is the label for "no class"."""

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
    """Second-order steps, then an Euler step at the end: float64 [B, ...].

    With `churn`, each step first raises the noise from sigma to (1 + gamma) sigma with fresh noise (algorithm 2).
    """
    x = noise.double() * sigmas[0]
    levels = sigmas.tolist()
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        if churn is not None and (gamma := churn.gamma(levels[step], len(levels) - 1)) > 0:
            assert fresh_noise is not None
            raised = sigma * (1 + gamma)
            x = x + (raised.square() - sigma.square()).sqrt() * churn.noise * fresh_noise(step).double()
            sigma = raised
        d = _direction(denoise, x, sigma, labels)
        there = x + (after - sigma) * d
        if levels[step + 1] > 0:
            there = x + (after - sigma) * 0.5 * (d + _direction(denoise, there, after, labels))
        x = there
    return x


def euler(
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """First-order steps of the same ODE, which is deterministic DDIM: float64 [B, ...]."""
    x = noise.double() * sigmas[0]
    for sigma, after in itertools.pairwise(sigmas):
        x = x + (after - sigma) * _direction(denoise, x, sigma, labels)
    return x


def ancestral(
    denoise: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None, fresh_noise: FreshNoise
) -> Tensor:
    """Draws from the posterior q(x_after | x, y = D(x)), whose variance is after^2 (sigma^2 - after^2) / sigma^2.

    noise        standard normal [B, ...]; the first state is noise scaled to the variance 1 + sigma^2
    fresh_noise  step -> standard normal [B, ...]

    Returns float64 [B, ...].
    """
    x = noise.double() * (1 + sigmas[0].square()).sqrt()
    levels = sigmas.tolist()
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        y = denoise(x.float(), sigma.float(), labels).double()
        ratio = (after / sigma).square()
        x = y + ratio * (x - y)
        if levels[step + 1] > 0:
            x = x + (after.square() * (1 - ratio)).sqrt() * fresh_noise(step).double()
    return x


def dpm_solver(
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """DPM-Solver++(2M) of diffusers at the given sigmas, with a first-order last step: float64 [B, ...].

    diffusers keeps the state in the variance-preserving scale x / sqrt(1 + sigma^2), in float32.
    """
    from diffusers import DPMSolverMultistepScheduler  # takes seconds to import

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
    sampler: str,
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None,
    fresh_noise: FreshNoise,
    churn: Churn | None = None,
) -> Tensor:
    """Calls the sampler of that name. Returns samples in the model's scale, not clipped: float64 [B, ...].

    A sampler may return a Tensor or an array. Raises UserError when it returns another type or shape.
    """
    options = {} if churn is None else {"churn": churn}
    found = SAMPLERS.load(sampler)(denoise, noise, sigmas, labels=labels, fresh_noise=fresh_noise, **options)
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found).to(noise.device)
    if not isinstance(found, Tensor) or found.shape != noise.shape:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"sample.sampler={sampler}: returned {got} for noise of shape {list(noise.shape)}")
    return found
