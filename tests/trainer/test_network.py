"""Networks: shapes, refusals, and the export that diffusers and the loader read."""

import sys
from types import SimpleNamespace

import pytest
import torch

from entroloop.data.errors import UserError
from entroloop.data.store import manifest
from entroloop.trainer import network
from entroloop.trainer.network_config import NetworkConfig

SMALL = NetworkConfig(channels=(8, 16), norm_groups=4, width=16, depth=1)


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 0), ((3, 8, 8), 5), ((2,), 0), ((7,), 3)])
def test_output_is_like_the_input_and_the_export_reads_back(tmp_path, shape, classes):
    net = network.build(SMALL, shape, classes, seed=1).eval()
    x, condition = torch.randn(4, *shape), torch.randn(4)
    labels = torch.tensor([0, 1, 2, classes]) if classes else None
    out = net(x, condition, labels)
    assert out.shape == x.shape
    manifest.seal(tmp_path, "weights", 0, net.save(tmp_path))
    torch.testing.assert_close(network.load(tmp_path)(x, condition, labels), out, rtol=0, atol=0)


def test_weights_follow_the_seed_alone():
    a, b = network.build(SMALL, (2,), 0, seed=1), network.build(SMALL, (2,), 0, seed=1)
    c = network.build(SMALL, (2,), 0, seed=2)
    first = [next(iter(n.parameters())) for n in (a, b, c)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize(
    ("config", "shape", "line"),
    [
        (NetworkConfig(kind="unet"), (5,), "network.kind=unet"),
        (NetworkConfig(channels=(8, 8, 8, 8, 8)), (1, 8, 8), "divisible by 16, not 8"),
        (NetworkConfig(channels=(12,), norm_groups=8), (1, 8, 8), "network.norm_groups=8"),
        (NetworkConfig(attention=(2,)), (1, 8, 8), "network.attention: level 2"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(config, shape, line):
    with pytest.raises(UserError, match=line):
        network.build(config, shape, 0, seed=0)


def test_vectors_are_folded_into_the_images_that_the_unet_sees():
    config = NetworkConfig(channels=(8, 16), norm_groups=4, fold=(4, 8, 8))
    net, plain = network.build(config, (256,), 0, seed=1), network.build(SMALL, (4, 8, 8), 0, seed=1)
    x, condition = torch.randn(2, 4, 8, 8), torch.randn(2)
    torch.testing.assert_close(net(x.flatten(1), condition, None), plain(x, condition, None).flatten(1))
    with pytest.raises(UserError, match=r"network.fold=\[4, 8, 8\]: needs vectors of 256 features"):
        network.build(config, (3, 8, 8), 0, seed=1)


def test_the_mlp_sees_images_as_vectors():
    config = NetworkConfig(kind="mlp", width=16)
    net, plain = network.build(config, (2, 4, 4), 0, seed=1), network.build(config, (32,), 0, seed=1)
    x, condition = torch.randn(3, 2, 4, 4), torch.randn(3)
    assert torch.equal(net(x, condition, None), plain(x.flatten(1), condition, None).reshape(x.shape))


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_attention_is_torchs_unless_another_is_asked_for():
    images, vectors = (network.build(SMALL, shape, 0, seed=1) for shape in ((1, 8, 8), (3,)))
    assert (images.use_attention("sdpa", CPU), vectors.use_attention("sdpa", CPU)) == ("sdpa", "none")


def does_not_run(*_):
    raise NotImplementedError("No operator found")


@pytest.mark.parametrize(
    ("module", "device", "said"),
    [
        (None, GPU, r"is not installed .*pip install 'entroloop\[cuda\]', or set sdpa$"),
        (SimpleNamespace(memory_efficient_attention=does_not_run), CPU, "on GPUs only, and this process on cpu: set"),
        (
            SimpleNamespace(memory_efficient_attention=does_not_run),
            GPU,
            r"on this GPU \(No operator found\): set sdpa$",
        ),
    ],
)
def test_xformers_is_refused_where_it_does_not_run(module, device, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", module)
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))  # this machine may have no GPU
    with pytest.raises(UserError, match=f"^network.attention_backend=xformers: xformers .*{said}"):
        network.build(SMALL, (1, 8, 8), 0, seed=1).use_attention("xformers", device)


class Line(torch.nn.Module):
    """A network of the user's own."""

    def __init__(self, shape, num_classes, *, scale=1.0):
        super().__init__()
        assert num_classes == 0
        self.scale = scale
        self.layer = torch.nn.Linear(shape[0], shape[0])

    def forward(self, x, condition, labels):
        return self.scale * self.layer(x)


def test_a_class_of_the_users_own_is_built_saved_and_read_back(tmp_path):
    config = NetworkConfig(kind=f"{__name__}:Line", options={"scale": 3.0})
    net = network.build(config, (5,), 0, seed=1).eval()
    x = torch.randn(4, 5)
    manifest.seal(tmp_path, "weights", 0, net.save(tmp_path))
    torch.testing.assert_close(network.load(tmp_path)(x, torch.zeros(4), None), net(x, torch.zeros(4), None))


def test_networks_of_the_users_own_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"'scael' does not exist: did you mean scale\?"):
        NetworkConfig(kind=f"{__name__}:Line", options={"scael": 1.0})
    with pytest.raises(ValueError, match="options: are for a network of your own"):
        NetworkConfig(kind="mlp", options={"scale": 1.0})
    with pytest.raises(ValueError, match=r"did you mean auto\?"):
        NetworkConfig(kind="auot")
    with pytest.raises(UserError, match="raised AssertionError"):
        network.build(NetworkConfig(kind=f"{__name__}:Line"), (5,), 3, seed=1)


def test_noise_conditions_of_vectors_are_exact_in_a_network_of_half_precision():
    """As DeepSpeed casts it: conditions of DDPM are steps up to 999, so a rounded frequency moves phases by radians."""
    net = network.build(SMALL, (3,), 0, seed=1).eval()
    assert isinstance(net, network.VectorNetwork)
    x, steps = torch.randn(8, 3), torch.arange(992, 1000)
    expected = net(x, steps, None)
    frequencies = net.frequencies.clone()
    short = net.bfloat16()
    assert torch.equal(short.frequencies, frequencies)
    torch.testing.assert_close(short(x.bfloat16(), steps, None).float(), expected, rtol=0.05, atol=0.05)
