"""DDP on two ranks that the tests start themselves: the results on which ranks must agree."""

import contextlib
import itertools
import json
import os

import numpy as np
import pytest
import torch
from ranks import on_ranks

from entroloop.data.errors import Failed, Interrupted
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.data.streams.resident import Resident
from entroloop.trainer import checkpoint
from entroloop.trainer import train as loop
from entroloop.trainer.diffusion import training_loss
from entroloop.trainer.engines.make import make_engine
from entroloop.trainer.network import build
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.train_config import TrainConfig


@contextlib.contextmanager
def launched(world):
    """What torchrun sets, which accelerate reads."""
    values = {
        "RANK": world.rank,
        "LOCAL_RANK": world.rank,
        "WORLD_SIZE": world.size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,
    }
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("set")
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 4, 4), dtype=np.uint8)
    write_shard(path, 0, images, None, Provenance(np.full(24, -1), np.arange(24), ("",) * 24), first_key=0)
    seal_dataset(path)
    return path


def job(folder, **changes):
    values = {"kimg": 0.4, "batch": 8, "warmup_kimg": 0.05, "checkpoint_kimg": 0.04, "log_kimg": 0.04, **changes}
    return loop.TrainJob(
        config=TrainConfig(**values), network=NetworkConfig(channels=(8,), norm_groups=4), seed=1, num_classes=0,
        checkpoints=folder / "checkpoints", weights=folder / "weights", stats=folder / "stats.jsonl", made_from={},
    )  # fmt: skip


def _gradients(world):
    """The network's gradient after each of two passes."""
    with launched(world):
        network = build(NetworkConfig(channels=(8,), norm_groups=4), (1, 4, 4), 0, seed=0)
        engine = make_engine(TrainConfig(batch=8, micro_batch=2), network, world)
        assert engine.passes == 2
        x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(world.rank))
        found = []
        for last in (False, True):
            with engine.one_pass(last):
                engine.backward(engine.call(x, torch.ones(2), None).square().mean())
            found.append(torch.cat([p.grad.flatten().clone() for p in engine.parameters if p.grad is not None]).numpy())
        engine.close()
        return found


@pytest.mark.slow
def test_gradients_are_reduced_in_the_last_pass_only():
    (first, reduced), (other, also_reduced) = on_ranks(2, _gradients)
    assert not np.allclose(first, other)
    assert np.array_equal(reduced, also_reduced)
    assert np.allclose(reduced, first + other, rtol=1e-4, atol=1e-7)  # twice the mean over ranks


def _train_until_one_rank_sees_nan(world, data, target, bad_rank):
    """What training raised where the samples of one rank turn to NaN at a step that ends in a checkpoint."""
    with launched(world):

        def spoiled(objective, call, y, noise, labels):
            loss, sigma = training_loss(objective, call, y, noise, labels)
            return (loss * float("nan") if next(steps) == 10 and world.rank == bad_rank else loss), sigma

        steps = itertools.count(1)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "training_loss", spoiled)
                loop.train(job(target), Resident(Dataset(data)), world)
        except Failed as error:
            return str(error)


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_spoils_no_checkpoint(folder, tmp_path, bad_rank):
    first, second = on_ranks(2, _train_until_one_rank_sees_nan, folder, tmp_path, bad_rank)
    assert first == second
    assert "the loss is not finite in step 10, which ends at 0.080 kimg: sigma " in first
    newest = max((tmp_path / "checkpoints").iterdir())
    assert newest.name == "images-000000000040.pt"
    weights = torch.load(newest, weights_only=True)["engine"]["weights"]
    assert all(value.isfinite().all() for value in weights.values())


def _resumed_from(world, data, target):
    """Where each rank resumes, when rank 1 does not see the newest checkpoint in the folder yet."""
    with launched(world):
        looks = iter([False, True])  # asked every eighth step
        with contextlib.suppress(Interrupted):
            loop.train(job(target), Resident(Dataset(data)), world, should_stop=lambda: next(looks))
        with pytest.MonkeyPatch.context() as patch:
            if world.rank == 1:
                patch.setattr(checkpoint, "newest", lambda path: None)
            trainer = loop.Trainer(job(target), Resident(Dataset(data)), world)
            trainer.engine.close()
        return trainer.seen, float(sum(m.double().sum() for m in trainer.engine.masters))


@pytest.mark.slow
def test_ranks_resume_from_the_checkpoint_that_rank_0_finds(folder, tmp_path):
    first, second = on_ranks(2, _resumed_from, folder, tmp_path)
    assert first == second
    assert first[0] == 128
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["kimg"] == 0.12
