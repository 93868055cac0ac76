"""Samplers with the exact denoisers of known distributions: they reach them, at their known order of error."""

import math

import pytest
import torch

from entroloop.trainer import sampler
from entroloop.trainer.diffusion import ddpm_sampling_sigmas, karras_sigmas
from entroloop.trainer.sampler import SampleConfig

MEAN, DEVIATION = 0.3, 0.5


def gaussian(x, sigma, labels):
    """E[y | y + sigma n = x] for y normal with MEAN and DEVIATION."""
    s2, d2 = sigma.double() ** 2, DEVIATION**2
    return (d2 * x.double() + s2 * MEAN) / (d2 + s2)


def two_points(x, sigma, labels):
    """The same for y = -1 or 1 with equal probability."""
    return torch.tanh(x.double() / sigma.double() ** 2)


def exact_flow(noise, sigma_max):
    """Where the probability-flow ODE of the Gaussian ends, started from sigma_max * noise."""
    start = sigma_max * noise.double()
    return MEAN + (start - MEAN) * DEVIATION / math.sqrt(DEVIATION**2 + sigma_max**2)


def error_of(function, steps, noise):
    out = function(gaussian, noise, karras_sigmas(steps))
    return (out - exact_flow(noise, 80.0)).abs().max().item()


@pytest.mark.parametrize(("function", "order"), [(sampler.heun, 2), (sampler.euler, 1)])
def test_error_falls_at_the_order_of_the_method(function, order):
    noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    errors = [error_of(function, steps, noise) for steps in (32, 64, 128)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        # The last, Euler, step to sigma = 0 is the same for both: with sigma_min = 0.002 it is far below these errors.
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_heun_reaches_the_gaussian_and_needs_the_stated_network_calls():
    calls = []

    def counted(x, sigma, labels):
        calls.append(1)
        return gaussian(x, sigma, labels)

    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    out = sampler.heun(counted, noise, karras_sigmas(18))
    assert len(calls) == SampleConfig(steps=18).nfe == 35
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    # 18 steps leave an error of 6 % in the deviation of this Gaussian; four times as many leave a sixteenth of it.
    assert out.std().item() == pytest.approx(DEVIATION, abs=0.035)
    out = sampler.heun(gaussian, noise, karras_sigmas(72))
    assert out.std().item() == pytest.approx(DEVIATION * noise.std().item(), abs=0.0025)


def test_heun_reaches_a_two_point_mixture():
    noise = torch.randn(2_000, 1, generator=torch.Generator().manual_seed(2))
    out = sampler.heun(two_points, noise, karras_sigmas(40))
    assert (out.abs() - 1).abs().max().item() < 0.02
    assert out.sign().mean().item() == pytest.approx(noise.sign().mean().item(), abs=1e-6)


@pytest.mark.parametrize("steps", [250, 1000])
def test_ancestral_sampling_reaches_the_gaussian(steps):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(20_000, 1, generator=generator)
    out = sampler.ancestral(
        gaussian, noise, ddpm_sampling_sigmas(steps), None, lambda step: torch.randn(noise.shape, generator=generator)
    )
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    # Ancestral steps with the posterior variance are a little under-dispersed at finitely many steps.
    assert out.std().item() == pytest.approx(DEVIATION, abs=0.03)


def test_ancestral_matches_diffusers_ddpm_scheduler():
    """Step by step against diffusers' DDPMScheduler in its own (variance-preserving) scale."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    fresh = {t: torch.randn(16, 3, generator=generator, dtype=torch.float64) for t in range(1000)}
    abar = scheduler.alphas_cumprod.double()

    def epsilon(x, t):  # of the Gaussian's exact denoiser, in the variance-preserving scale
        a, sigma = abar[t].sqrt(), ((1 - abar[t]) / abar[t]).sqrt()
        return (x / a - gaussian(x / a, sigma, None)) / sigma

    theirs = x.clone()
    for t in range(999, -1, -1):
        mean = scheduler.step(epsilon(theirs, t), t, theirs, generator=torch.Generator().manual_seed(0)).prev_sample
        quiet = scheduler._get_variance(t).double().sqrt() if t else 0.0
        drawn = torch.randn((16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        theirs = mean - quiet * drawn + quiet * fresh[t] if t else mean
    sigmas = ddpm_sampling_sigmas(1000)
    ours = sampler.ancestral(gaussian, x, sigmas, None, lambda step: fresh[999 - step])
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)  # diffusers keeps its betas in float32


def test_guidance_one_is_none_and_zero_is_unconditional():
    def denoise(x, sigma, labels):
        return labels.double()[:, None] * torch.ones_like(x)

    x, labels = torch.zeros(3, 2), torch.tensor([1, 2, 3])
    null = 9
    for weight in (0.0, 1.0, 2.5):
        out = sampler.guided(denoise, weight, null)(x, torch.tensor(1.0), labels)
        expected = null + weight * (labels.double() - null)
        torch.testing.assert_close(out, expected[:, None].expand(3, 2).to(out.dtype))
