"""Diffusion as pure functions of tensors: noising, preconditioning, losses and noise levels.

Both objectives use the variance-exploding form x = y + sigma * n with clean data y in [-1, 1] and n standard normal,
so that every sampler works with either. A *denoiser* D(x, sigma, labels) estimates y.

    EDM   Karras et al. 2022 (arXiv 2206.00364), table 1: preconditioned network, log-normal training noise
    DDPM  Ho et al. 2020 (arXiv 2006.11239): epsilon prediction at 1000 steps with betas linear from 1e-4 to 0.02;
          its x_t = sqrt(abar_t) y + sqrt(1 - abar_t) n is sqrt(abar_t) x at sigma = sqrt((1 - abar_t) / abar_t)

B batch, `...` the shape of a sample; sigma float32 [B] or a scalar.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from entroloop.trainer.catalogue import DDPM_STEPS, OBJECTIVES

SIGMA_DATA = 0.5
P_MEAN, P_STD = -1.2, 1.2
BETAS = (1e-4, 0.02)  # DDPM's first and last beta

# (input [B, ...], noise condition [B], labels [B]) -> [B, ...]
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# (x [B, ...], sigma [B], labels [B]) -> estimate of y
Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _like(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, …] to multiply with x."""
    shape: list[int] = [-1] + [1] * (x.ndim - 1)
    return values.reshape(shape)


@dataclass(frozen=True)
class Noise:
    """The random numbers of one batch: `normal` like the samples, `uniform` float32 [B] in [0, 1)."""

    normal: Tensor
    uniform: Tensor


def edm_sigma(uniform: Tensor) -> Tensor:
    """Training noise levels: log sigma normal with mean -1.2 and standard deviation 1.2 (by the inverse CDF)."""
    quantile = torch.special.ndtri(uniform.double().clamp(1e-7, 1 - 1e-7))
    sigma: Tensor = (P_MEAN + P_STD * quantile).exp()
    return sigma.to(uniform.dtype)


def edm_denoise(network: Network, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), equation 7; computed in float32."""
    s = _like(sigma, x)
    total = s.square() + SIGMA_DATA**2
    out = network(x / total.sqrt(), sigma.log() / 4, labels)
    return SIGMA_DATA**2 / total * x + s * SIGMA_DATA / total.sqrt() * out.to(x.dtype)


def edm_loss(network: Network, y: Tensor, noise: Noise, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted squared error, mean over a sample's elements: (loss [B], sigma [B])."""
    sigma = edm_sigma(noise.uniform)
    weight = (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square()
    denoised = edm_denoise(network, y + _like(sigma, y) * noise.normal, sigma, labels)
    return weight * (denoised - y).square().flatten(1).mean(1), sigma


@functools.cache
def _ddpm_levels(device: torch.device) -> tuple[Tensor, Tensor]:
    """(abar, log sigma) of every step on that device, made once: a copy to a GPU makes the host wait."""
    return ddpm_alphas_cumprod().to(device), ddpm_sigmas().log().to(device)


def ddpm_alphas_cumprod() -> Tensor:
    """abar_t for t = 0 … 999: float64 [1000]."""
    return torch.cumprod(1 - torch.linspace(*BETAS, DDPM_STEPS, dtype=torch.float64), 0)


def ddpm_sigmas() -> Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t), rising with t: float64 [1000]."""
    abar = ddpm_alphas_cumprod()
    return ((1 - abar) / abar).sqrt()


def ddpm_loss(network: Network, y: Tensor, noise: Noise, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared error of the predicted epsilon at a uniform step, mean over elements: (loss [B], sigma [B])."""
    t = (noise.uniform * DDPM_STEPS).long().clamp(max=DDPM_STEPS - 1)
    abar = _ddpm_levels(y.device)[0][t]
    x = _like(abar.sqrt().to(y.dtype), y) * y + _like((1 - abar).sqrt().to(y.dtype), y) * noise.normal
    loss = (network(x, t, labels).to(y.dtype) - noise.normal).square().flatten(1).mean(1)
    return loss, ((1 - abar) / abar).sqrt().to(y.dtype)


def ddpm_denoise(network: Network, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """y = x - sigma * epsilon; t is the step whose log sigma_t is nearest to log sigma."""
    levels = _ddpm_levels(x.device)[1]
    log_sigma = sigma.double().log()
    t = torch.searchsorted(levels, log_sigma).clamp(1, DDPM_STEPS - 1)
    t = torch.where(log_sigma - levels[t - 1] < levels[t] - log_sigma, t - 1, t)
    s = _like(sigma, x)
    epsilon = network(x / (1 + s.square()).sqrt(), t, labels).to(x.dtype)
    return x - s * epsilon


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Sampling noise levels of equation 5, then 0: float64 [steps + 1], falling."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def ddpm_sampling_sigmas(steps: int) -> Tensor:
    """`steps` of the 1000 DDPM noise levels, evenly spaced down to t = 0, then 0: float64 [steps + 1]."""
    t = torch.linspace(DDPM_STEPS - 1, 0, steps, dtype=torch.float64).round().long()
    return torch.cat([ddpm_sigmas()[t], torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class Objective:
    """The loss that trains a network, and how to sample from the network.

    loss     (network, y [B, ...], noise, labels [B]) -> (loss [B], sigma [B]) of clean samples y
    denoise  (network, x [B, ...], sigma [B], labels [B]) -> estimate of y
    sigmas   (steps, sigma_min, sigma_max, rho) -> sampling noise levels, falling, the last one 0: float64 [steps + 1]
    """

    loss: Callable[[Network, Tensor, Noise, Tensor | None], tuple[Tensor, Tensor]]
    denoise: Callable[[Network, Tensor, Tensor, Tensor | None], Tensor]
    sigmas: Callable[[int, float, float, float], Tensor]


EDM = Objective(edm_loss, edm_denoise, karras_sigmas)
DDPM = Objective(ddpm_loss, ddpm_denoise, lambda steps, *_: ddpm_sampling_sigmas(steps))


def training_loss(
    objective: str, network: Network, y: Tensor, noise: Noise, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(loss [B], sigma [B]) of clean samples y [B, ...] under the objective of that name."""
    found: Objective = OBJECTIVES.load(objective)
    return found.loss(network, y, noise, labels)


def denoiser(objective: str, network: Network) -> Denoiser:
    """The denoiser of a network that was trained under the objective of that name."""
    found: Objective = OBJECTIVES.load(objective)

    def call(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return found.denoise(network, x, sigma.expand(len(x)), labels)

    return call


@functools.lru_cache(maxsize=8)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant on that device, made once: a copy to a GPU makes the host wait."""
    return torch.tensor(values, dtype=dtype, device=device)


@dataclass(frozen=True)
class Scale:
    """Converts between stored samples and the model's scale: y = (stored - center) / width.

    Images (uint8) are scaled to [-1, 1], vectors (float32) to mean 0 and standard deviation `SIGMA_DATA` per feature.
    """

    image: bool
    center: tuple[float, ...]
    width: tuple[float, ...]

    @staticmethod
    def of_vectors(parts: Iterable[Tensor]) -> Scale:
        """The scale of a set given as a sequence of parts, float32 [n, D]. The last bits depend on the parts."""
        count, mean, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for part in parts:
            x = part.double()
            count += len(x)
            step = x.mean(0) - mean  # Chan et al. 1983: merges the means and sums of squares of two sets
            mean = mean + step * (len(x) / count)
            squares = squares + (x - x.mean(0)).square().sum(0) + step.square() * (len(x) * (count - len(x)) / count)
        deviation = (squares / count).sqrt().clamp_min(1e-6) / SIGMA_DATA
        return Scale(False, tuple(mean.tolist()), tuple(deviation.tolist()))

    @staticmethod
    def of_images() -> Scale:
        return Scale(True, (127.5,), (127.5,))

    def to_model(self, samples: Tensor) -> Tensor:
        """float32, of the same shape."""
        center, width = (_constant(tuple(v), torch.float32, samples.device) for v in (self.center, self.width))
        return (samples.float() - center) / width

    def from_model(self, y: Tensor) -> Tensor:
        """uint8 images, rounded and clamped, or float32 vectors, of the same shape."""
        center, width = (_constant(tuple(v), y.dtype, y.device) for v in (self.center, self.width))
        stored = y * width + center
        return stored.round().clamp(0, 255).to(torch.uint8) if self.image else stored.float()
