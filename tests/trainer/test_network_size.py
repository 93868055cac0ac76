"""The closed forms of the numbers of parameters, compared with networks that are built."""

import random
from pathlib import Path

import pytest
import torch

from entroloop.data.errors import UserError
from entroloop.launcher import config as configuration
from entroloop.launcher.preview import memory
from entroloop.trainer import network
from entroloop.trainer.catalogue import NETWORKS
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.network_size import check_unet, mlp_parameters, unet_parameters

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def built(config, shape, classes):
    with torch.device("meta"):
        return sum(p.numel() for p in network.build(config, shape, classes, 0).parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_count_of_each_recipe_is_that_of_its_network(path):
    config = configuration.load(path)
    shape, _ = memory.sample_shape(config)
    classes = memory.ASSUMED_CLASSES if config.train.labels else 0
    assert memory.count_parameters(config, shape) == built(config.network, shape, classes)


@pytest.mark.parametrize("seed", range(24))
def test_unets_of_every_form_are_counted(seed):
    draw = random.Random(seed)
    levels = draw.randint(1, 4)
    config = NetworkConfig(
        channels=tuple(draw.choice((8, 12, 16, 20, 32)) for _ in range(levels)),
        norm_groups=draw.choice((1, 2, 4)),
        layers_per_block=draw.randint(1, 3),
        attention=tuple(level for level in range(levels) if draw.random() < 0.5),
        middle_attention=draw.random() < 0.5,
    )
    shape, classes = (draw.choice((1, 3, 4)), 16, 16), draw.choice((0, 1, 7))
    assert unet_parameters(config, shape, classes) == built(config, shape, classes)


@pytest.mark.parametrize(("width", "depth", "features", "classes"), [(1, 1, 1, 0), (16, 3, 5, 4), (7, 2, 30, 1)])
def test_mlps_of_every_form_are_counted(width, depth, features, classes):
    config = NetworkConfig(kind="mlp", width=width, depth=depth)
    for shape in ((features,), (3, features, features)):
        assert mlp_parameters(config, shape, classes) == built(config, shape, classes)


def test_every_built_in_network_can_be_counted():
    assert all(facts.counted_by for facts in NETWORKS.built_in.values())


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(channels=(4, 8), norm_groups=4, attention=(0,)),
        NetworkConfig(channels=(8, 4), norm_groups=4, middle_attention=True),
    ],
)
def test_attention_on_too_few_channels_is_refused(config):
    with pytest.raises(UserError, match=r"network.channels: attention needs at least 8 channels, level \d has 4"):
        network.build(config, (1, 8, 8), 0, seed=0)
    check_unet(config.model_copy(update={"attention": (), "middle_attention": False}), (1, 8, 8))


def test_the_least_attention_runs():
    config = NetworkConfig(channels=(4, 8), norm_groups=4, attention=(1,))
    net = network.build(config, (1, 8, 8), 0, seed=0)
    assert net(torch.zeros(2, 1, 8, 8), torch.zeros(2), None).shape == (2, 1, 8, 8)
