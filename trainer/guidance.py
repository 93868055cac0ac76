"""Guidance by a second network: two sealed sets of weights -> one denoiser.

    autoguidance  Karras et al. 2024 (arXiv 2406.02507): away from a weaker network, D_guide + w (D - D_guide)
    sims          Alemohammad et al. 2024 (arXiv 2408.16333): away from a network that was trained on samples of a base,
                  (1 + w) D_base - w D; the score is (D - x) / sigma^2, so the same holds for scores
    neon          Alemohammad et al. 2025 (arXiv 2510.03597): one network with the weights (1 + w) base - w finetuned

In sims and neon the guide is the base, because the base must exist before the other network can be trained. Sampling
the run that trained on the base's samples therefore samples from the corrected base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.store import manifest
from entroloop.trainer import network
from entroloop.trainer.diffusion import Denoiser, denoiser
from entroloop.trainer.network import DenoiserNetwork
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.sample_config import GuideKind, SampleConfig

Prepare = Callable[[DenoiserNetwork], DenoiserNetwork]


def extrapolated(weight: float, base: Denoiser, other: Denoiser) -> Denoiser:
    """(1 + w) base - w other."""

    def call(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return (1 + weight) * base(x, sigma, labels) - weight * other(x, sigma, labels)

    return call


def combined(kind: GuideKind, weight: float, own: Denoiser, guide: Denoiser) -> Denoiser:
    """Combines the sampled network's denoiser and the guide's denoiser by `autoguidance` or `sims`."""
    if kind == "autoguidance":
        return extrapolated(weight - 1, own, guide)
    assert kind == "sims"
    return extrapolated(weight, guide, own)


@torch.no_grad()
def extrapolate_weights(weight: float, base: DenoiserNetwork, finetuned: DenoiserNetwork, where: Path) -> None:
    """Sets the weights of `finetuned` to (1 + w) base - w finetuned, computed in float64.

    where  folder of the base, for messages

    Raises UserError when the two networks do not have the same parameters, or when their buffers differ.
    """
    theirs, mine = base.state_dict(), finetuned.state_dict()
    if {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in mine.items()}:
        raise _of_another_shape(where)
    trained = {name for name, _ in finetuned.named_parameters()}
    for name, w in mine.items():
        if name in trained:
            w.copy_((1 + weight) * theirs[name].double() - weight * w.double())
        elif not torch.equal(w, theirs[name]):
            raise UserError(f"sample.guide={where}: this network was not finetuned from it: set train.warm_start=true")


def denoiser_of(weights: Path, config: SampleConfig, guide: Path | None, prepare: Prepare) -> Denoiser:
    """The denoiser of sealed weights, with the guide that the configuration names.

    guide    folder of the guide's sealed weights; None for no guide
    prepare  moves a network to the device that calls it, and compiles it

    Raises UserError when the guide does not fit.
    """
    about = manifest.read(weights).about
    own = network.load(weights)
    if guide is None:
        return denoiser(about["objective"], prepare(own))
    theirs = check_guide(guide, about["shape"], about["num_classes"])
    if theirs["scale"] != about["scale"]:
        raise _unlike(guide, "its training set, which decides the scale of vectors, had another mean or deviation")
    second = network.load(guide)
    assert config.guide_weight is not None
    if config.guide_kind == "neon":
        if theirs["objective"] != about["objective"]:
            raise UserError(f"sample.guide={guide}: trained as {theirs['objective']}, not {about['objective']}")
        extrapolate_weights(config.guide_weight, second, own, guide)
        return denoiser(about["objective"], prepare(own))
    mine, other = denoiser(about["objective"], prepare(own)), denoiser(theirs["objective"], prepare(second))
    return combined(config.guide_kind, config.guide_weight, mine, other)


def check_guide(folder: Path, shape: Sequence[int], num_classes: int) -> dict[str, Any]:
    """The `about` of a guide's sealed weights, which describes the guide's network.

    shape, num_classes  of the sampled network; 0 classes for a network that learns no labels

    Raises UserError when the folder holds no sealed weights, or, naming the difference, when the guide's network is for
    samples of another shape or another number of classes.
    """
    try:
        found = manifest.read(folder)
    except UserError as error:
        raise UserError(f"sample.guide={folder}: {error}") from error
    if found.kind != "weights":
        raise UserError(f"sample.guide={folder}: holds {found.kind}: give a sealed folder of weights")
    theirs = found.about
    if theirs["shape"] != list(shape):
        raise _unlike(folder, f"a network for samples of shape {theirs['shape']}, not {list(shape)}")
    if theirs["num_classes"] != num_classes:
        raise _unlike(folder, f"a network with {theirs['num_classes']} classes, not {num_classes}")
    return theirs


def check_base(folder: Path, config: NetworkConfig, objective: str, shape: tuple[int, ...], num_classes: int) -> None:
    """Checks the base of neon, a sealed folder of weights, against the network that a configuration trains.

    Raises UserError when the objective or the shape of any weight differs.
    """
    theirs = manifest.read(folder).about["objective"]
    if theirs != objective:
        raise UserError(f"sample.guide={folder}: trained as {theirs}, not {objective}")
    with torch.device("meta"):
        mine = network.build(config, shape, num_classes, 0).state_dict()
    if {k: v.shape for k, v in network.load(folder).state_dict().items()} != {k: v.shape for k, v in mine.items()}:
        raise _of_another_shape(folder)


def _of_another_shape(folder: Path) -> UserError:
    return UserError(f"sample.guide={folder}: a network of another shape: sample.guide_kind=neon needs equal networks")


def _unlike(folder: Path, difference: str) -> UserError:
    return UserError(f"sample.guide={folder}: {difference}: give one that was trained on such samples")
