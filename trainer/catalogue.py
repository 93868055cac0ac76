"""The samplers, networks, objectives and trackers that a configuration can name, with their facts.

This module imports none of the files that hold them, so reading a configuration does not need torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from entroloop.data.registry import Facts, Registry


@dataclass(frozen=True)
class SamplerFacts(Facts):
    """A function (denoise, noise, sigmas, labels=, fresh_noise=) -> samples. See `trainer/sampler.py`.

    calls  steps -> network calls per sample
    churn  whether it takes the noise of `sample.s_churn` as a further argument `churn=`
    """

    calls: Callable[[int], int] = lambda steps: steps
    churn: bool = False


@dataclass(frozen=True)
class NetworkFacts(Facts):
    """A class of networks. See `trainer/network.py`.

    samples  the samples that it takes: `images` [C, H, W], `vectors` [D] or `any`
    file     name of the file by which a saved network is recognised, for a `DenoiserNetwork`, which makes, saves and
             loads itself; empty for other classes, which are called with (shape, num_classes, **options)
    counted_by  for a built-in one, `module:attribute` of a function (config, shape, num_classes) -> number of
             parameters that needs no torch, so that the dry run is fast; without it the dry run makes the network
    """

    samples: Literal["images", "vectors", "any"] = "any"
    file: str = ""
    counted_by: str = ""


@dataclass(frozen=True)
class ObjectiveFacts(Facts):
    """An `Objective` of `trainer/diffusion.py`.

    levels  the number of noise levels of a model if it is fixed, else None; sampling cannot take more steps
    clips   whether sampling clips the estimates of images to [-1, 1]
    """

    levels: int | None = None
    clips: bool = False


@dataclass(frozen=True)
class TrackerFacts(Facts):
    """A function (name, project, folder, options) -> (log, finish). See `trainer/tracking.py`.

    library  the module that must be installed
    """

    library: str | None = None


DDPM_STEPS = 1000

_SAMPLERS = {
    "heun": SamplerFacts("entroloop.trainer.sampler:heun", calls=lambda steps: 2 * steps - 1, churn=True),
    "euler": SamplerFacts("entroloop.trainer.sampler:euler"),
    "ddim": SamplerFacts("entroloop.trainer.sampler:euler"),
    "ddpm": SamplerFacts("entroloop.trainer.sampler:ancestral"),
    "dpm-solver++": SamplerFacts("entroloop.trainer.sampler:dpm_solver"),
}
_NETWORKS = {
    "unet": NetworkFacts(
        "entroloop.trainer.network:ImageNetwork", "images", "unet/config.json",
        counted_by="entroloop.trainer.network_size:unet_parameters",
    ),
    "mlp": NetworkFacts(
        "entroloop.trainer.network:VectorNetwork", "any", "mlp.json",
        counted_by="entroloop.trainer.network_size:mlp_parameters",
    ),
}  # fmt: skip
_OBJECTIVES = {
    "edm": ObjectiveFacts("entroloop.trainer.diffusion:EDM"),
    "ddpm": ObjectiveFacts("entroloop.trainer.diffusion:DDPM", levels=DDPM_STEPS, clips=True),
}
_TRACKERS = {
    name: TrackerFacts("entroloop.trainer.engines.trackers:start_tracker", library=name)
    for name in ("tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio")
}

SAMPLERS = Registry("sampler", "samplers", SamplerFacts, _SAMPLERS)
NETWORKS = Registry("network", "networks", NetworkFacts, _NETWORKS)
OBJECTIVES = Registry("objective", "objectives", ObjectiveFacts, _OBJECTIVES)
TRACKERS = Registry("tracker", "trackers", TrackerFacts, _TRACKERS)


def own_parts(network: str, objective: str, sampler: str) -> dict[str, str]:
    """The configuration key and the name of each of the three that is not built in."""
    own = {}
    if network != "auto" and network not in NETWORKS.built_in:
        own["network.kind"] = network
    if objective not in OBJECTIVES.built_in:
        own["train.objective"] = objective
    if sampler not in SAMPLERS.built_in:
        own["sample.sampler"] = sampler
    return own
