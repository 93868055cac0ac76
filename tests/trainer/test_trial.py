"""A user's own network, objective and sampler on two samples: what they must return, and each way to get it wrong."""

from typing import Any

import pytest
import torch
from torch import nn

from entroloop.data.errors import UserError
from entroloop.trainer.diffusion import EDM, Objective
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.sample_config import SampleConfig
from entroloop.trainer.trial import check_own


class Net(nn.Module):
    def __init__(self, shape, num_classes, *, fault=""):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=fault != "frozen")
        self.fault = fault
        if fault == "making":
            raise OSError("no file")

    def forward(self, x, condition, labels):
        assert (labels is None) == (self.fault != "labels")
        out = x * self.scale
        match self.fault:
            case "shape":
                return out[:1]
            case "array":
                return out.detach().numpy()
            case "nan":
                return out * float("nan")
            case "raises":
                raise RuntimeError("boom")
            case "exits":
                raise SystemExit(3)
            case "backward":
                return out.detach()
        return out


def sampler(fault=""):
    def sample(denoise, noise, sigmas, labels=None, fresh_noise=None):
        x = noise.double() * sigmas[0]
        for sigma in sigmas[:-1]:
            x = denoise(x.float(), sigma.float(), labels).double() + 0 * fresh_noise(0)
        match fault:
            case "shape":
                return x[:1]
            case "list":
                return x.tolist()
            case "nan":
                return x * float("nan")
            case "array":
                return x.numpy()
            case "raises":
                return x[10**6]
        return x

    if fault == "calls":
        vars(sample)["calls"] = lambda steps: steps / 2
    return sample


array, tensor, short, listed, nan, raises, calls = map(
    sampler, ["array", "", "shape", "list", "nan", "raises", "calls"]
)


def unlike(denoise, noise):
    return noise


def objective(*parts: Any) -> Objective:
    return Objective(*parts)


good = objective(EDM.loss, EDM.denoise, EDM.sigmas)
one_loss = objective(lambda *a: EDM.loss(*a)[0].mean(), EDM.denoise, EDM.sigmas)
mean_loss = objective(lambda *a: (EDM.loss(*a)[0].mean(), EDM.loss(*a)[1]), EDM.denoise, EDM.sigmas)
nan_loss = objective(lambda *a: (EDM.loss(*a)[0] * float("nan"), EDM.loss(*a)[1]), EDM.denoise, EDM.sigmas)
no_levels = objective(EDM.loss, EDM.denoise, lambda steps: None)
nothing = object()


def tried(network="auto", objective="edm", sample="heun", shape=(1, 8, 8), classes=0, **options):
    check_own(
        NetworkConfig(kind=network if network == "auto" else f"{__name__}:{network}", options=options),
        objective if objective == "edm" else f"{__name__}:{objective}",
        SampleConfig(sampler=sample if sample == "heun" else f"{__name__}:{sample}"),
        shape,
        classes,
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3,)])
def test_a_good_one_of_each_kind_passes_and_leaves_the_random_numbers_alone(shape):
    torch.manual_seed(1)
    tried("Net", "good", "tensor", shape)
    tried(sample="array", shape=shape)
    tried("Net", fault="labels", classes=3, shape=shape)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("making", "called with [1, 8, 8], 0 raised OSError: no file"),
        ("shape", "returned [1, 1, 8, 8] for x [2, 1, 8, 8]: it must return a Tensor of the shape of x"),
        ("array", "returned ndarray"),
        ("nan", "tried on 2 samples some loss is NaN"),
        ("raises", "tried on 2 samples it raised RuntimeError: boom"),
        ("exits", "tried on 2 samples it raised SystemExit: 3"),
        ("backward", "tried on 2 samples it raised RuntimeError"),
        ("frozen", "has no parameters that can be trained"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(fault, line):
    with pytest.raises(UserError) as caught:
        tried("Net", fault=fault)
    assert str(caught.value).startswith(f"network.kind={__name__}:Net: ")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("short", "returned [1, 1, 8, 8] for noise of shape [2, 1, 8, 8]"),
        ("listed", "returned list"),
        ("nan", "tried on 2 samples some value is NaN or infinity"),
        ("raises", "tried on 2 samples it raised IndexError"),
        ("unlike", "tried on 2 samples it raised TypeError"),
        ("calls", "calls(18) must be a positive integer, is 9.0"),
    ],
)
def test_a_sampler_that_does_not_sample_is_refused(name, line):
    with pytest.raises(UserError) as caught:
        tried(sample=name)
    assert str(caught.value).startswith(f"sample.sampler={__name__}:{name}: ")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("one_loss", "its loss must return two Tensors, loss and sigma, is a Tensor of shape []"),
        ("mean_loss", "its loss must be a Tensor of shape [2], is a Tensor of shape []"),
        ("nan_loss", "some loss is NaN"),
        ("no_levels", "it raised TypeError"),
        ("nothing", "it raised AttributeError"),
    ],
)
def test_an_objective_that_cannot_be_used_is_refused(name, line):
    with pytest.raises(UserError) as caught:
        tried(objective=name)
    assert str(caught.value).startswith(f"train.objective={__name__}:{name}: ")
    assert line in str(caught.value)


def test_only_own_things_are_tried(monkeypatch):
    monkeypatch.setattr("entroloop.trainer.trial.build", lambda *_: pytest.fail("built a network"))
    tried()
    tried(sample="tensor")
