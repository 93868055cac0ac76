"""Samplers with exact denoisers reach the known distributions, with their known order of error."""

import itertools
import math

import pytest
import torch

from entroloop.data.errors import UserError
from entroloop.trainer import sampler
from entroloop.trainer.diffusion import ddpm_sampling_sigmas, karras_sigmas
from entroloop.trainer.sample_config import Churn, SampleConfig, check_fits_model, noise_levels
from entroloop.trainer.sampler import draw

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


ORDERS = [(sampler.heun, 2), (sampler.euler, 1), (sampler.dpm_solver, 2)]


def orders_of(errors):
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


@pytest.mark.parametrize(("function", "order"), ORDERS)
def test_error_falls_at_the_order_of_the_method(function, order):
    noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    # The last, Euler, step to sigma = 0 is the same for all: with sigma_min = 0.002 it is far below these errors.
    assert orders_of([error_of(function, steps, noise) for steps in (32, 64, 128)]) == pytest.approx(
        [order, order], abs=0.35
    )


def two_points_cdf(x, sigma):
    """Of y + sigma n, y = -1 or 1 with equal probability."""
    return 0.5 * (torch.special.ndtr((x - 1) / sigma) + torch.special.ndtr((x + 1) / sigma))


def exact_two_points(x, sigma, after):
    """Where the flow takes x from sigma to `after`: in one dimension it keeps quantiles; by bisection."""
    quantile = two_points_cdf(x, sigma)
    low, high = torch.full_like(x, -20), torch.full_like(x, 20)
    for _ in range(80):
        middle = (low + high) / 2
        below = two_points_cdf(middle, after) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


@pytest.mark.parametrize(("function", "order"), ORDERS)
def test_order_on_the_two_point_mixture(function, order):
    noise = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]

    def error(steps):
        sigmas = karras_sigmas(steps + 1, 0.6, 4.0)[:-1]  # down to 0.6, where the two points still overlap
        return (function(two_points, noise, sigmas) - exact_two_points(4 * noise, 4.0, 0.6)).abs().max().item()

    found = orders_of([error(steps) for steps in (16, 32, 64)])
    assert found == pytest.approx([order, order], abs=0.35)


@pytest.mark.parametrize(("function", "order"), ORDERS)
def test_the_two_point_mixture_is_reached(function, order):
    noise = torch.randn(2_000, 1, generator=torch.Generator().manual_seed(2))
    out = function(two_points, noise, karras_sigmas(40))
    assert (out.abs() - 1).abs().max().item() < 0.02
    assert torch.equal(out.sign(), noise.sign().double())


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


# -- against diffusers, each in its own scale --------------------------------------------------------------------------


def start(seed=4):
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ddim_matches_diffusers_ddim_scheduler():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="linspace")
    scheduler.set_timesteps(50)
    sigmas = ddpm_sampling_sigmas(50)
    theirs = start()  # variance-preserving
    ours = sampler.euler(gaussian, theirs * (1 + sigmas[0].square()).sqrt() / sigmas[0], sigmas)
    for sigma, after in itertools.pairwise(sigmas):
        # Their steps are equally long in t and ours are rounded, so hand over both ends of each step.
        scheduler.alphas_cumprod = torch.stack([1 / (1 + after.square()), 1 / (1 + sigma.square())])
        scheduler.num_inference_steps, scheduler.config.num_train_timesteps = 1, 1
        a = scheduler.alphas_cumprod[1].sqrt()
        epsilon = (theirs / a - gaussian(theirs / a, sigma, None)) / sigma
        theirs = scheduler.step(epsilon, 1, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "name"), [(sampler.euler, "EulerDiscreteScheduler"), (sampler.heun, "HeunDiscreteScheduler")]
)
def test_euler_and_heun_match_diffusers_discrete_schedulers(function, name):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(timestep_spacing="linspace", use_karras_sigmas=True, prediction_type="epsilon")
    scheduler.set_timesteps(20)
    theirs = start() * scheduler.sigmas[0]
    levels = scheduler.sigmas.double()
    if name.startswith("Heun"):  # each level but the first and the last appears twice
        levels = torch.cat([levels[:1], levels[1::2]])
    assert len(levels) == 21
    for t in scheduler.timesteps:
        sigma = scheduler.sigmas[0 if scheduler.step_index is None else scheduler.step_index].double()
        epsilon = (theirs - gaussian(theirs, sigma, None)) / sigma
        theirs = scheduler.step(epsilon, t, theirs.float()).prev_sample.double()
    ours = function(gaussian, start(), levels)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_dpm_solver_matches_diffusers_edm_scheduler():
    """Which is another class, and works in the variance-exploding scale."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(20)
    theirs = start() * 80.0
    for step, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[step].double()
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        network = (gaussian(theirs, sigma, None) - skip * theirs) / out
        theirs = scheduler.step(network, t, theirs).prev_sample
    ours = sampler.dpm_solver(gaussian, start(), karras_sigmas(20))
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-4)


def test_dpm_solver_keeps_nothing_between_calls():
    first, second = (sampler.dpm_solver(two_points, start(), karras_sigmas(8)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, sampler.dpm_solver(two_points, start(5), karras_sigmas(8)))


CHURN = Churn(amount=8.0, low=0.05, high=20.0, noise=1.003)


def fresh(step):
    return torch.randn((16, 3), generator=torch.Generator().manual_seed(100 + step))


def test_churn_matches_diffusers_karras_ve_scheduler():
    module = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_karras_ve")
    sigmas = karras_sigmas(20)
    scheduler = module.KarrasVeScheduler(s_churn=8.0, s_min=0.05, s_max=20.0, s_noise=1.003)
    scheduler.num_inference_steps = 20
    theirs = start() * 80.0
    for step, (sigma, after) in enumerate(itertools.pairwise(sigmas.tolist())):
        hat, raised = scheduler.add_noise_to_input(theirs, sigma, torch.Generator().manual_seed(100 + step))

        def score(x, sigma):
            return (gaussian(x, torch.tensor(sigma), None) - x) / sigma

        predicted = score(hat, raised)
        theirs, slope = scheduler.step(predicted, raised, after, hat, return_dict=False)
        if after:
            theirs, _ = scheduler.step_correct(
                score(theirs, after), raised, after, hat, theirs, slope, return_dict=False
            )
    ours = sampler.heun(gaussian, start(), sigmas, None, CHURN, fresh)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_churn_reaches_the_gaussian_and_its_limits_hold():
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    again = torch.Generator().manual_seed(2)
    steps = []

    def drawn(step):
        steps.append(step)
        return torch.randn(noise.shape, generator=again)

    sigmas = karras_sigmas(64)
    out = sampler.heun(gaussian, noise, sigmas, None, Churn(16.0, low=0.1, high=10.0), drawn)
    assert steps == [i for i, sigma in enumerate(sigmas.tolist()) if 0.1 <= sigma <= 10.0]
    assert out.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert out.std().item() == pytest.approx(DEVIATION, abs=0.01)
    # Noise that is taken away and added again makes the end forget the start.
    quiet = sampler.heun(gaussian, noise, sigmas)
    assert torch.corrcoef(torch.stack([out[:, 0], noise[:, 0].double()]))[0, 1] < 0.7
    assert torch.corrcoef(torch.stack([quiet[:, 0], noise[:, 0].double()]))[0, 1] > 0.999


def test_churn_raises_the_noise_by_at_most_the_square_root_of_two():
    assert Churn(1.0).gamma(1.0, 10) == pytest.approx(0.1)
    assert Churn(1e6).gamma(1.0, 10) == pytest.approx(math.sqrt(2) - 1)
    assert Churn(1.0, low=2.0).gamma(1.0, 10) == 0.0


@pytest.mark.parametrize("name", ["heun", "euler", "ddim", "ddpm", "dpm-solver++"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_sampler_calls_the_network_as_often_as_stated_and_in_float32(name, steps):
    seen = []

    def counted(x, sigma, labels):
        seen.append((x.dtype, sigma.dtype))
        return gaussian(x, sigma, labels).float()

    config = SampleConfig(sampler=name, steps=steps)
    out = draw(name, counted, start(), karras_sigmas(steps), None, fresh, config.churn)
    assert out.dtype == torch.float64
    assert torch.isfinite(out).all()
    assert len(seen) == config.nfe
    assert set(seen) == {(torch.float32, torch.float32)}


def test_network_calls_of_guided_sampling():
    assert SampleConfig(steps=18, guidance=2.0).nfe == 70
    guide = {"guide": "previous", "guide_weight": 0.5}
    assert SampleConfig(steps=18, **guide).nfe == 70
    assert SampleConfig(steps=18, guide_kind="neon", **guide).nfe == 35
    assert SampleConfig(steps=18, guide_kind="sims", guidance=2.0, **guide).nfe == 140


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "ddim", "s_churn": 1.0}, "s_churn=1 goes with sampler=heun"),
        ({"s_noise": 1.01}, "s_min, s_max and s_noise say how s_churn adds noise"),
        ({"sigma_min": 80.0}, "sigma_min=80 must be below sigma_max=80"),
        ({"guide": "previous"}, "guide and guide_weight go together"),
        ({"guide_weight": 1.0}, "guide and guide_weight go together"),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SampleConfig(**values)


def test_more_steps_than_a_ddpm_model_has_are_refused():
    assert len(noise_levels(SampleConfig(steps=1000), "ddpm")) == 1001
    with pytest.raises(UserError, match=r"sample\.steps=1001: a ddpm model has 1000"):
        check_fits_model(SampleConfig(steps=1001), "ddpm", labelled=False)
