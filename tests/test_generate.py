"""Sampling: an image depends on its number alone; shards are made once, whoever makes them."""

import numpy as np
import pytest
import torch

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.plan import Part
from entroloop.data.shards import Dataset, seal_dataset
from entroloop.trainer import checkpoint, network
from entroloop.trainer.diffusion import Scale
from entroloop.trainer.generate import Generator, SamplePlan, generate, sample_labels
from entroloop.trainer.network import NetworkConfig
from entroloop.trainer.sampler import SampleConfig

PLAN = SamplePlan(run_seed=5, generation=2, count=50, shard_size=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["edm", "ddpm"])
def weights(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    net = network.build(NetworkConfig(channels=(8,), norm_groups=4), (1, 4, 4), 3, seed=0)
    checkpoint.export(
        folder, {"": net}, objective=request.param, scale=Scale(True, (127.5,), (127.5,)), num_classes=3,
        shape=(1, 4, 4), images_seen=0, made_from={},
    )  # fmt: skip
    return folder


def made(folder):
    seal_dataset(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("sampler", ["heun", "ddpm", "ddim"])
def test_any_split_into_parts_gives_the_same_bytes(weights, tmp_path, sampler):
    config = SampleConfig(sampler=sampler, steps=3, batch=8)
    whole = tmp_path / "whole"
    assert generate(weights, whole, config, PLAN, Part(), CPU) == 50
    expected = made(whole)
    for size in (2, 3, 7):
        folder = tmp_path / f"of-{size}"
        for rank in reversed(range(size)):
            generate(weights, folder, config, PLAN, Part(rank, size), CPU)
        assert made(folder) == expected
    assert Dataset(whole).provenance.generation.tolist() == [2] * 50
    assert Dataset(whole).provenance.index.tolist() == list(range(50))


def test_an_image_does_not_depend_on_its_batch(weights):
    source = Generator(weights, SampleConfig(sampler="ddpm", steps=4), PLAN, CPU)
    whole, labels = source.samples(0, 12)
    part, some = source.samples(7, 9)
    assert np.abs(whole[7:9].astype(int) - part.astype(int)).max() <= 1  # other batch sizes may round otherwise
    assert labels[7:9].tolist() == some.tolist()


def test_a_restart_makes_only_what_is_missing(weights, tmp_path):
    config = SampleConfig(steps=2)
    generate(weights, tmp_path, config, PLAN, Part(), CPU)
    (tmp_path / "shard-000001.tar").unlink()
    (tmp_path / "shard-000001.json").unlink()
    before = (tmp_path / "shard-000000.tar").stat().st_mtime_ns
    assert generate(weights, tmp_path, config, PLAN, Part(), CPU) == 16
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == before
    assert generate(weights, tmp_path, config, PLAN, Part(), CPU) == 0


def test_stopping_keeps_finished_shards(weights, tmp_path):
    looks = iter([False] * 3 + [True])
    with pytest.raises(Interrupted):
        generate(weights, tmp_path, SampleConfig(steps=2, batch=8), PLAN, Part(), CPU, should_stop=lambda: next(looks))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard-000000.json", "shard-000000.tar"]


def test_labels_by_rule():
    assert sample_labels(PLAN, 4, 10, 3, None).tolist() == [1, 2, 0, 1, 2, 0]
    histogram = np.array([1, 0, 3])
    drawn = sample_labels(PLAN, 0, 4000, 3, histogram)
    assert np.bincount(drawn, minlength=3)[1] == 0
    assert np.mean(drawn == 2) == pytest.approx(0.75, abs=0.03)
    assert drawn[100:110].tolist() == sample_labels(PLAN, 100, 110, 3, histogram).tolist()


def test_guidance_without_labels_is_refused(tmp_path):
    net = network.build(NetworkConfig(width=8, depth=1), (2,), 0, seed=0)
    checkpoint.export(
        tmp_path, {"": net}, objective="edm", scale=Scale(False, (0.0, 0.0), (1.0, 1.0)), num_classes=0, shape=(2,),
        images_seen=0, made_from={},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"sample\.guidance=2"):
        Generator(tmp_path, SampleConfig(guidance=2.0), PLAN, CPU)
