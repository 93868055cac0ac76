"""Objectives against float64 formulas written out here, and the scales."""

import math

import pytest
import torch

from entroloop.trainer import diffusion
from entroloop.trainer.diffusion import Noise, Scale


def zero_network(x, condition, labels):
    return torch.zeros_like(x)


def test_edm_denoiser_of_a_zero_network_is_the_skip_connection():
    x = torch.randn(4, 1, 8, 8)
    sigma = torch.tensor([0.01, 0.5, 2.0, 50.0])
    out = diffusion.edm_denoise(zero_network, x, sigma, None)
    skip = 0.25 / (sigma.double() ** 2 + 0.25)
    torch.testing.assert_close(out.double(), skip.reshape(4, 1, 1, 1) * x.double(), rtol=1e-5, atol=1e-6)


def test_edm_loss_weight_makes_every_level_count_alike_at_the_start():
    """With an untrained network (F = 0) and data of variance sigma_data^2 the expected loss is 1 (EDM, B.6)."""
    generator = torch.Generator().manual_seed(0)
    y = 0.5 * torch.randn(20_000, 4, generator=generator)
    for level in (0.02, 0.5, 5.0):
        uniform = torch.full((len(y),), 0.5)
        noise = Noise(torch.randn(y.shape, generator=generator), uniform)
        shifted = torch.special.ndtri(torch.tensor(0.5)).item()
        assert shifted == 0
        sigma = torch.full((len(y),), level)
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        out = diffusion.edm_denoise(zero_network, y + level * noise.normal, sigma, None)
        assert (weight * (out - y).square().mean(1)).mean().item() == pytest.approx(1.0, rel=0.03)


def test_edm_training_levels_are_log_normal():
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(1))
    logs = diffusion.edm_sigma(u).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert logs.std().item() == pytest.approx(1.2, abs=0.01)


def test_ddpm_loss_against_the_formula_in_float64():
    y = torch.randn(5, 2, 4, 4)
    noise = Noise(torch.randn(5, 2, 4, 4), torch.tensor([0.0, 0.2005, 0.5005, 0.9005, 0.9999]))
    seen = {}

    def network(x, t, labels):
        seen["x"], seen["t"] = x, t
        return 0.3 * x

    loss, sigma = diffusion.ddpm_loss(network, y, noise, None)
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    for i, u in enumerate(noise.uniform.double()):
        t = min(int(u * 1000), 999)
        abar = math.prod(1 - b for b in betas[: t + 1])
        x = math.sqrt(abar) * y[i].double() + math.sqrt(1 - abar) * noise.normal[i].double()
        assert seen["t"][i] == t
        torch.testing.assert_close(seen["x"][i].double(), x, rtol=1e-5, atol=1e-5)
        assert loss[i].item() == pytest.approx(((0.3 * x - noise.normal[i].double()) ** 2).mean().item(), rel=1e-4)
        assert sigma[i].item() == pytest.approx(math.sqrt((1 - abar) / abar), rel=1e-5)


def test_ddpm_denoiser_asks_for_the_step_whose_level_it_was_given():
    asked = []

    def network(x, t, labels):
        asked.append(t)
        return torch.zeros_like(x)

    sigmas = diffusion.ddpm_sigmas()
    steps = torch.tensor([0, 1, 17, 500, 998, 999])
    diffusion.ddpm_denoise(network, torch.zeros(6, 3), sigmas[steps].float(), None)
    assert asked[0].tolist() == steps.tolist()


def test_ddpm_denoiser_inverts_the_noising():
    y = torch.rand(3, 2) * 2 - 1
    n = torch.randn(3, 2)
    sigma = diffusion.ddpm_sigmas()[torch.tensor([3, 100, 600])].float()
    out = diffusion.ddpm_denoise(lambda x, t, labels: n, y + sigma[:, None] * n, sigma, None)
    torch.testing.assert_close(out, y, atol=1e-4, rtol=1e-4)


def test_karras_levels_match_the_published_endpoints():
    sigmas = diffusion.karras_sigmas(18)
    assert len(sigmas) == 19
    assert sigmas[0].item() == pytest.approx(80)
    assert sigmas[17].item() == pytest.approx(0.002)
    assert sigmas[18] == 0
    assert bool((sigmas.diff() < 0).all())


def test_scale_round_trips_every_pixel_value_and_standardises_vectors():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    scale = Scale.of_images()
    y = scale.to_model(pixels)
    assert y.min() == -1
    assert y.max() == 1
    assert torch.equal(scale.from_model(y), pixels)
    vectors = torch.randn(500, 3) * torch.tensor([1.0, 100.0, 0.01]) + 7
    scale = Scale.of_vectors([vectors])
    assert scale.to_model(vectors).std(0, correction=0).tolist() == pytest.approx([0.5] * 3, rel=1e-4)
    torch.testing.assert_close(scale.from_model(scale.to_model(vectors)), vectors, rtol=1e-4, atol=1e-4)


def test_the_scale_of_parts_is_that_of_the_whole():
    vectors = torch.randn(500, 3) * torch.tensor([1.0, 100.0, 0.01]) + 7
    whole, parts = Scale.of_vectors([vectors]), Scale.of_vectors(torch.split(vectors, [1, 130, 369]))
    assert whole.center == pytest.approx(vectors.double().mean(0).tolist(), rel=1e-12)
    assert whole.width == pytest.approx((vectors.double().std(0, correction=0) / 0.5).tolist(), rel=1e-9)
    assert parts.center == pytest.approx(whole.center, rel=1e-12)
    assert parts.width == pytest.approx(whole.width, rel=1e-9)
