"""What an engine refuses before it trains: one line that names the key and what would be right."""

import sys

import pytest
import torch

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.trainer import engine
from entroloop.trainer.network import NetworkConfig, build
from entroloop.trainer.schedule import TrainConfig, micro_batches


def make(world=None, **values):
    network = build(NetworkConfig(channels=(8,), norm_groups=4), (1, 4, 4), 0, seed=0)
    return engine.make_engine(TrainConfig(**{"batch": 8, **values}), network, world or World())


@pytest.fixture
def launched(monkeypatch):
    """As a rank of `accelerate launch --use_deepspeed` finds it."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    return monkeypatch


@pytest.mark.parametrize("name", ["auto", "zero2"])
def test_deepspeed_that_is_not_installed(launched, name):
    launched.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"train\.engine=zero2: DeepSpeed is not installed .* pip install 'entroloop\["):
        make(engine=name)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "not a DeepSpeed configuration in JSON"),
        ('["a"]', "not a DeepSpeed configuration in JSON"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}', "keeps weights and moments on"),
    ],
)
def test_a_deepspeed_file_that_does_not_fit(launched, tmp_path, content, line):
    path = tmp_path / "zero.json"
    path.write_text(content)
    launched.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(UserError, match=line):
        make(engine="zero2")


def test_a_stage_in_the_file_is_the_one_that_auto_takes(launched, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    launched.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    launched.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match="zero3: DeepSpeed is not installed"):
        make()


def test_precisions_that_a_device_lacks(monkeypatch):
    with pytest.raises(UserError, match=r"train\.precision=fp16: a CPU cannot train in fp16; use no or bf16"):
        make(precision="fp16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UserError, match=r"train\.precision=bf16: this GPU has no bf16; use fp16 or no"):
        make(World(device=torch.device("cuda")), precision="bf16")


def test_batches_that_do_not_divide():
    with pytest.raises(UserError, match=r"train\.batch=8 does not divide over 3 processes: use a multiple of 3"):
        micro_batches(TrainConfig(batch=8), 3)
    with pytest.raises(UserError, match=r"train\.micro_batch=3 does not divide the 4 images"):
        micro_batches(TrainConfig(batch=8, micro_batch=3), 2)
    assert micro_batches(TrainConfig(batch=24, micro_batch=4), 2) == (4, 3)
