"""Tries a user's own network, objective and sampler on two samples, before a run begins.

    names, shape of a sample  ->  check_own  ->  nothing, or one line that names the key and the fault

Only things that are not built in are tried, each with the smallest things that it needs around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.registry import said
from entroloop.trainer.catalogue import SAMPLERS, own_parts
from entroloop.trainer.diffusion import SIGMA_DATA, Denoiser, Noise, denoiser, training_loss
from entroloop.trainer.network import build
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.sample_config import SampleConfig, noise_levels
from entroloop.trainer.sampler import draw

SAMPLES = 2
STEPS = 3  # noise levels of the trial: enough for a sampler that looks back
Result = TypeVar("Result")


def check_own(
    network: NetworkConfig, objective: str, sample: SampleConfig, shape: tuple[int, ...], num_classes: int
) -> None:
    """Trains one step and samples once with whatever is the user's own.

    shape, num_classes  of the run's samples; 0 classes for a model without labels

    Raises UserError, naming the key, when a thing raises, returns another type or shape than it must, or a number that
    is not finite.
    """
    own = own_parts(network.kind, objective, sample.sampler)
    labels = torch.arange(SAMPLES) % num_classes if num_classes else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoise: Denoiser = _known_denoiser
        if "network.kind" in own or "train.objective" in own:
            denoise = _trained(network, objective, own, shape, num_classes, labels)
        if "sample.sampler" in own or "train.objective" in own:
            _sampled(sample, objective, own, denoise, shape, labels)


def _trained(
    network: NetworkConfig, objective: str, own: dict[str, str], shape: tuple[int, ...], num_classes: int,
    labels: Tensor | None,
) -> Denoiser:  # fmt: skip
    """One training step. Returns the denoiser of the network."""
    net = _known_network
    what = _named(own, "network.kind", "train.objective")
    if "network.kind" in own:
        net = build(network, shape, num_classes, 0)
        if not any(p.requires_grad for p in net.parameters()):
            raise UserError(f"network.kind={network.kind}: has no parameters that can be trained")
    clean, noise = SIGMA_DATA * torch.randn(SAMPLES, *shape), Noise(torch.randn(SAMPLES, *shape), torch.rand(SAMPLES))
    found: Any = _tried(what, lambda: training_loss(objective, net, clean, noise, labels))
    if not isinstance(found, tuple) or len(found) != 2:
        raise _wrong(what, "its loss must return two Tensors, loss and sigma", found)
    loss, sigma = found
    for name, value in (("loss", loss), ("sigma", sigma)):
        if not isinstance(value, Tensor) or value.shape != (SAMPLES,):
            raise _wrong(what, f"its {name} must be a Tensor of shape [{SAMPLES}]", value)
    _finite(what, "loss", loss)
    if "network.kind" in own:
        _tried(what, lambda: loss.mean().backward())
    return denoiser(objective, net)


@torch.no_grad()
def _sampled(
    sample: SampleConfig, objective: str, own: dict[str, str], denoise: Denoiser, shape: tuple[int, ...],
    labels: Tensor | None,
) -> None:  # fmt: skip
    what = _named(own, "sample.sampler", "train.objective")

    def noise(step: int = 0) -> Tensor:
        return torch.randn(SAMPLES, *shape)

    sigmas = _tried(what, lambda: noise_levels(sample.model_copy(update={"steps": STEPS}), objective))
    calls = _tried(what, lambda: SAMPLERS.facts(sample.sampler).calls(sample.steps))
    if not isinstance(calls, int) or calls < 1:
        raise UserError(f"{what}: calls({sample.steps}) must be a positive integer, is {calls}")
    drawn = _tried(what, lambda: draw(sample.sampler, denoise, noise(), sigmas, labels, noise, sample.churn))
    _finite(what, "value", drawn)


def _known_network(x: Tensor, condition: Tensor, labels: Tensor | None) -> Tensor:
    return torch.zeros_like(x)


def _known_denoiser(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """The exact estimate for normal data of deviation SIGMA_DATA."""
    return x * (SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma.square()))


def _named(own: dict[str, str], *keys: str) -> str:
    """`key=name` of the first of the keys that names a thing of the user's own."""
    key = next(key for key in keys if key in own)
    return f"{key}={own[key]}"


def _tried(what: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UserError(f"{what}: tried on {SAMPLES} samples it raised {said(error)}") from error


def _finite(what: str, name: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise UserError(f"{what}: tried on {SAMPLES} samples some {name} is NaN or infinity")


def _wrong(what: str, must: str, value: Any) -> UserError:
    got = f"a Tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    return UserError(f"{what}: {must}, is {got}")
