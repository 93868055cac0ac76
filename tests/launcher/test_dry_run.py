"""The shipped configurations: the dry run checks each without data, and the paper's have the values of the paper."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from loops import tiny

from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.data.streams.resident import Resident
from entroloop.data.world import World
from entroloop.launcher import config as configuration
from entroloop.launcher import sweep
from entroloop.launcher.preview import disk
from entroloop.launcher.preview import memory as footprint
from entroloop.launcher.preview.dry_run import describe
from entroloop.trainer.network import ImageNetwork, build
from entroloop.trainer.train import Trainer, TrainJob

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_dry_run_needs_neither_data_nor_a_gpu(path):
    config = configuration.load(path)
    said = describe(config)
    shape, _ = footprint.sample_shape(config)
    assert f"{footprint.count_parameters(config, shape):,} parameters" in said
    assert f"x {config.sample.nfe} NFE" in said
    assert said.count(" evaluate ") == config.generations


@pytest.mark.parametrize("paradigm", ["replace", "accumulate", "accumulate-subsample"])
def test_a_million_generations_are_foreseen_without_counting_to_a_million(tmp_path, monkeypatch, paradigm):
    overrides = (
        f"loop.paradigm={paradigm}",
        "keep.samples=needed",
        "loop.candidates=2",
        "sample.guide=generation_0003",
        "sample.guide_weight=2",
    )
    said = describe(tiny(tmp_path, "generations=1000000", *overrides))
    assert len(said.splitlines()) < 200
    assert "generation 999999 evaluate" in said
    assert f"{96 * (4 * 5 + 999_996 * 10):,} network calls" in said
    # The totals are those of a run whose generations all have lines of their own.
    config, source = tiny(tmp_path, "generations=60", *overrides), disk.source_of(tiny(tmp_path))
    short = disk.describe_disk(config, source)[-1]
    monkeypatch.setattr(disk, "LISTED", 60)
    assert disk.describe_disk(config, source)[-1] == short


def saved(path, rows):
    (np.savez if path.suffix == ".npz" else np.save)(path, rows)
    return str(path)


@pytest.mark.parametrize("name", ["rows.npy", "rows.npz"])
@pytest.mark.parametrize(("shape", "kind"), [((6,), np.float32), ((3, 8, 8), np.uint8)])
def test_the_shape_of_stored_arrays_is_that_of_one_sample(tmp_path, name, shape, kind):
    source = saved(tmp_path / name, np.zeros((20, *shape), kind))
    facts = disk.source_of(tiny(tmp_path, f"data.source={source}"))
    assert (facts.count, facts.shape) == (20, shape)


@pytest.mark.parametrize(("name", "size"), [("cifar10", 32768), ("ffhq32", 8192)])
def test_the_papers_set_up(name, size):
    config = configuration.load(CONFIGS / f"{name}.yaml")
    train = config.train
    assert config.data.size == size
    assert train.images == 501 * size
    assert train.batch == 128
    assert train.warmup_kimg * 1000 == 500 * train.batch
    assert (train.objective, train.schedule, train.precision, train.ema.rule) == ("ddpm", "cosine", "fp16", "none")
    assert (train.lr, train.betas, train.weight_decay, train.clip) == (1e-4, (0.95, 0.999), 1e-6, 1.0)
    assert not train.flip
    assert (config.sample.sampler, config.sample.nfe) == ("ddpm", 1000)
    down = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4
    theirs = UNet2DModel(
        sample_size=32, norm_num_groups=16, layers_per_block=2, block_out_channels=(48, 48, 96, 96, 192, 192),
        down_block_types=tuple(down), up_block_types=tuple(up),
    )  # fmt: skip
    network = build(config.network, (3, 32, 32), 0, seed=0)
    assert isinstance(network, ImageNetwork)
    ours = network.unet
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    ignored = {"_use_default_values", "num_train_timesteps"}
    assert {k: v for k, v in ours.config.items() if k not in ignored} == {
        k: v for k, v in theirs.config.items() if k not in ignored
    }


@pytest.mark.parametrize("name", ["cifar10", "ffhq32"])
def test_the_papers_arms(name):
    _, arms = sweep.arms_of(CONFIGS / f"{name}.yaml", [])
    found = [
        (c.loop.paradigm, c.selection.strategy, c.loop.candidates, c.loop.draw, c.selection.options)
        for c in (arm.config for arm in arms)
    ]
    assert found == [
        ("accumulate-subsample", "random", 1, "stratified", {}),
        ("accumulate-subsample", "greedy", 1, "uniform", {}),
        ("accumulate-subsample", "threshold-decay", 1, "uniform", {"threshold": 60, "decay": 0.80}),
        ("replace", "random", 1, "uniform", {}),
        ("replace", "greedy", 2, "uniform", {}),
        ("replace", "threshold-decay", 2, "uniform", {"threshold": 60, "decay": 0.95}),
    ]
    for arm in arms:
        assert arm.config.selection.encoder == "dinov2-paper"
        assert arm.config.generations == 8
        assert {"pixel", "inception-paper"} < set(arm.config.evaluation.encoders)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_that_are_shipped_depend_on_no_default_of_the_selection(path):
    raw = configuration.read_yaml(path)
    if "loop" in raw:  # the others are accelerate's
        assert {"paradigm", "candidates"} <= raw["loop"].keys()
        assert {"strategy", "encoder"} <= raw["selection"].keys()


def test_other_recipes():
    latent = configuration.load(CONFIGS / "ffhq256-latent.yaml")
    assert footprint.count_parameters(latent, (4 * 32 * 32,)) > 300e6
    assert latent.train.engine == "zero2"
    assert configuration.load(CONFIGS / "ffhq64.yaml").slurm.of("train").ranks == 32
    assert configuration.load(CONFIGS / "cifar10-edm.yaml").sample.nfe == 35
    for name in ("ffhq32", "ffhq64"):
        assert configuration.load(CONFIGS / f"{name}.yaml").data.mode == "streaming"


def test_memory_of_one_process_is_what_the_trainer_holds(tmp_path):
    where = Provenance(np.full(16, -1), np.arange(16), ("",) * 16)
    write_shard(tmp_path / "set", 0, np.zeros((16, 1, 8, 8), np.uint8), None, where, first_key=0)
    seal_dataset(tmp_path / "set")
    config = tiny(tmp_path, "train.more_emas.short.halflife_kimg=1", "train.batch=8")
    job = TrainJob(config.train, config.network, 0, 0, tmp_path / "c", tmp_path / "w", tmp_path / "s", {})
    trainer = Trainer(job, Resident(Dataset(tmp_path / "set")), World())
    trainer.engine.backward(next(iter(trainer.engine.network.parameters())).sum())  # makes the optimizer
    for parameter in trainer.engine.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in trainer.engine.network.parameters()]
    trainer.engine.optimizer.step()
    adam, keys = trainer.engine.adam
    moments = [adam.state[key][name] for key in keys for name in ("exp_avg", "exp_avg_sq")]
    held = [*trainer.engine.masters, *gradients, *moments, *trainer.averages[""], *trainer.averages["short"]]
    parameters = footprint.count_parameters(config, (1, 8, 8))
    found = footprint.bytes_per_process(config, parameters, "single", 1)
    assert found == sum(x.numel() * x.element_size() for x in held)


def test_memory_shrinks_with_every_stage_and_rank():
    config = configuration.load(CONFIGS / "ffhq256-latent.yaml")
    sizes = [footprint.bytes_per_process(config, 1000, engine, 4) for engine in footprint.ENGINES[2:]]
    # bf16 weights and gradients 2 bytes each; masters, two moments, one average 4 bytes each
    assert sizes == [4000 + 250 * 16, 2000 + 250 * 18, 250 * 20]
    assert footprint.bytes_per_process(config, 1000, "zero3", 8) == math.ceil(1000 / 8) * 20
    shape, _ = footprint.sample_shape(config)
    zero2 = footprint.bytes_per_process(config, footprint.count_parameters(config, shape), "zero2", 16)
    assert "MiB per process on 16, without activations: single" in describe(config)
    assert f"zero2 {zero2 / 2**20:,.0f} (this one)" in describe(config)


def test_the_dry_run_counts_a_guide_only_where_there_is_one(tmp_path):
    config = configuration.load(
        CONFIGS / "digits.yaml",
        ["generations=2", "sample.guide=previous", "sample.guide_weight=1.5", "sample.steps=4"],
    )
    said = describe(config)
    assert "generation 0   sample    512 images x 7 NFE" in said
    assert "generation 1   sample    512 images x 14 NFE" in said
    assert f"{512 * 21:,} network calls" in said
