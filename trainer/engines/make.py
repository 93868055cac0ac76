"""Configuration and launch -> the engine that trains."""

from __future__ import annotations

from torch import nn

from entroloop.data.world import World
from entroloop.trainer.engines.launch import check_launch
from entroloop.trainer.engines.plain import Engine
from entroloop.trainer.engines.zero import ZeroEngine
from entroloop.trainer.train_config import TrainConfig


def make_engine(config: TrainConfig, network: nn.Module, world: World) -> Engine:
    """The engine that the configuration asks for, around `network`. Raises UserError as `check_launch` does."""
    stage = check_launch(config, world)
    return ZeroEngine(config, network, world, stage) if stage else Engine(config, network, world)
