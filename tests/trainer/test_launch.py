"""What an engine refuses before it trains: one line that names the key and what would be right."""

import sys

import pytest
import torch
from loops import tiny

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.launcher.run import runner
from entroloop.trainer.engines.make import make_engine
from entroloop.trainer.engines.zero import ZeroEngine
from entroloop.trainer.network import build
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.train_config import TrainConfig, micro_batches


def make(world=None, **values):
    network = build(NetworkConfig(channels=(8,), norm_groups=4), (1, 4, 4), 0, seed=0)
    return make_engine(TrainConfig(**{"batch": 8, **values}), network, world or World())


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
        ('{"zero_optimization": {"stage": 0}}', "stage=0: must be 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 3}}', "launched for ZeRO stage 3"),
        ('{"optimizer": {"type": "Adam"}}', "optimizer: this trainer brings its own"),
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


@pytest.mark.parametrize("name", ["single", "ddp"])
def test_deepspeed_that_was_launched_and_not_asked_for(launched, name):
    with pytest.raises(
        UserError, match=rf"train\.engine={name}: this was launched with --use_deepspeed: launch without"
    ):
        make(engine=name)


@pytest.mark.parametrize("name", ["FSDP", "MEGATRON_LM"])
def test_other_engines_of_accelerate(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=rf"ACCELERATE_USE_{name}: this trainer has DDP and DeepSpeed's ZeRO"):
        make()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.engine=ddp", r"train\.engine=ddp: this was launched as single with 1 process"),
        ("train.precision=fp16", r"train\.precision=fp16: a CPU computes"),
        ("train.micro_batch=3", r"train\.micro_batch=3 does not divide"),
        ("sample.precision=fp16", r"sample\.precision=fp16: a CPU computes"),
        ("sample.guide=nowhere", r"sample\.guide=nowhere: "),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_begun(tmp_path, override, line):
    weight = ["sample.guide_weight=1.5"] if "guide" in override else []
    config = tiny(tmp_path, override, *weight)
    with pytest.raises(UserError, match=line):
        runner.run(config, World(), lambda: False)
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_accelerate_was_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    make()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with pytest.raises(UserError, match=r"ACCELERATE_DYNAMO_BACKEND=EAGER: .* train\.compile=true"):
        make()


@pytest.mark.parametrize(
    ("stage", "engine", "line"),
    [
        ("3", "zero2", r"train\.engine=zero2: this was launched for ZeRO stage 3"),
        ("0", "auto", r"zero_optimization\.stage=0: must be 1, 2 or 3"),
        ("0", "zero2", r"zero_optimization\.stage=0: must be 1, 2 or 3"),
    ],
)
def test_stages_that_are_launched_and_not_those_of_the_configuration(launched, stage, engine, line):
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(UserError, match=line):
        make(engine=engine)


def test_offload_that_the_launcher_asks_for(launched):
    launched.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    with pytest.raises(UserError, match="keeps weights and moments on the device"):
        make(engine="zero2")


def test_precisions_that_a_device_lacks(monkeypatch):
    with pytest.raises(UserError, match=r"train\.precision=fp16: a CPU computes no network in fp16; use no or bf16"):
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


def test_the_sections_of_a_deepspeed_file_are_kept():
    given = {"fp16": {"initial_scale_power": 8, "enabled": False}, "zero_optimization": {"stage": 2}}
    engine = ZeroEngine.__new__(ZeroEngine)
    engine.config, engine.micro, engine.passes = TrainConfig(precision="fp16"), 4, 2
    found = engine._deepspeed_config(given)
    assert found["fp16"] == {"initial_scale_power": 8, "enabled": True}
    assert found["bf16"] == {"enabled": False}
    assert found["zero_optimization"] == given["zero_optimization"]
