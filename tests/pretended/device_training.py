"""Training on a CUDA device, pretended or real: every objective, network and precision, resumed and exported."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import PartialState

from entroloop.data.errors import Failed, Interrupted
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.data.streams.resident import Resident
from entroloop.data.world import World
from entroloop.trainer import checkpoint
from entroloop.trainer.catalogue import OBJECTIVES
from entroloop.trainer.network import load
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.train import Trainer, TrainJob, train
from entroloop.trainer.train_config import TrainConfig

pytestmark = pytest.mark.gpu
CPU, GPU = World(), World(device=torch.device("cuda", 0))
SHAPES = {"unet": (3, 8, 8), "mlp": (6,)}
BATCH = 8


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A small labelled set of images, and one of vectors."""
    found = {}
    for name, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp(name)
        r = np.random.default_rng(0)
        pixels, numbers = r.integers(0, 256, (24, *shape), dtype=np.uint8), r.normal(size=(24, *shape))
        where = Provenance(np.full(24, -1), np.arange(24), ("",) * 24)
        kept = pixels if len(shape) == 3 else numbers.astype(np.float32)
        write_shard(folder, 0, kept, np.arange(24) % 3, where, first_key=0)
        seal_dataset(folder)
        found[name] = Resident(Dataset(folder))
    return found


def job(folder, network, **changes):
    config = TrainConfig(
        kimg=BATCH * 2 / 1000, batch=BATCH, labels=True, flip=network == "unet", log_kimg=BATCH / 1000,
        checkpoint_kimg=BATCH / 1000, warmup_kimg=0, **changes,
    )  # fmt: skip
    dropout = 0.0 if config.precision == "no" else 0.1  # the CPU and the device draw other masks
    small = NetworkConfig(channels=(8, 8), attention=(1,), norm_groups=4, dropout=dropout, width=16, depth=1)
    return TrainJob(
        config=config, network=small, seed=1, num_classes=3, checkpoints=folder / "checkpoints",
        weights=folder / "weights", stats=folder / "stats.jsonl", made_from={},
    )  # fmt: skip


def stats(folder):
    """The last step's line of stats.jsonl."""
    return json.loads((folder / "stats.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("network", SHAPES)
@pytest.mark.parametrize("objective", OBJECTIVES.built_in)
def test_training(objective, network, precision, sets, tmp_path):
    changes = {"objective": objective, "precision": precision, "micro_batch": BATCH // 2}
    with pytest.raises(Interrupted):
        train(job(tmp_path, network, **changes), sets[network], GPU, should_stop=lambda: True)
    train(job(tmp_path, network, **changes), sets[network], GPU)
    assert all(torch.isfinite(value).all() for value in load(tmp_path / "weights").state_dict().values())
    if precision == "no":
        PartialState._reset_state()  # accelerate keeps the device of its first use
        train(job(tmp_path / "cpu", network, **changes), sets[network], CPU)
        PartialState._reset_state()
        for name in ("loss", "gradient_norm"):
            assert stats(tmp_path)[name] == pytest.approx(stats(tmp_path / "cpu")[name], rel=1e-3)


def begun(folder, network, data, **changes):
    trainer = Trainer(job(folder, network, **changes), data, GPU)
    batches = data.batches(seed=1, seen=0, until=100 * BATCH, batch=BATCH)
    return trainer, trainer.prepared(batches)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("network", SHAPES)
@pytest.mark.parametrize("objective", OBJECTIVES.built_in)
def test_a_step_waits_for_the_device_at_most_once(objective, network, precision, sets, tmp_path, watch):
    trainer, batches = begun(tmp_path, network, sets[network], objective=objective, precision=precision, micro_batch=4)
    trainer.step(*next(batches))
    with watch() as seen:
        trainer.step(*next(batches))
    assert seen.launches.total() > 100
    assert seen.syncs.total() <= 1, seen.syncs


def half_weights(network):
    """Number of tensors that autocast casts to half precision: those of products and convolutions."""
    layers = (m for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))
    return sum(1 for layer in layers for _ in layer.parameters(recurse=False))


@pytest.mark.parametrize("network", SHAPES)
def test_weights_are_cast_to_half_precision_once_per_step(network, sets, tmp_path, watch):
    """Twice as many passes have twice as many casts, without those of the weights."""
    casts = []
    for micro in (BATCH, BATCH // 2):
        trainer, batches = begun(tmp_path, network, sets[network], precision="bf16", micro_batch=micro)
        trainer.step(*next(batches))
        with watch() as seen:
            trainer.step(*next(batches))
        casts.append(seen.launches["_to_copy"])
    weights = half_weights(trainer.engine.network)
    assert 2 * casts[0] - casts[1] == weights > 10


def test_a_gradient_that_is_not_finite_stops_training_one_step_later(sets, tmp_path):
    trainer, batches = begun(tmp_path, "mlp", sets["mlp"])
    (good, drawn), (bad, also_drawn) = next(batches), next(batches)
    bad.samples[2] = torch.nan
    trainer.step(good, drawn)
    trainer.step(bad, also_drawn)
    with pytest.raises(Failed, match=rf"loss is not finite in step 2, .* training images \[{bad.ids[2]}\]"):
        trainer.step(*next(batches))
    trainer, _ = begun(tmp_path, "mlp", sets["mlp"])
    trainer.step(bad)
    with pytest.raises(Failed, match="in step 1"):
        trainer.save()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_checkpoint_is_copied_into_pinned_memory_and_the_thread_that_writes_it_waits(sets, tmp_path, watch):
    trainer, batches = begun(tmp_path, "unet", sets["unet"])
    trainer.step(*next(batches))
    with watch() as seen:
        trainer.save()
        trainer.saver.settle()
    waits = sorted(name.partition(" at ")[0] for name in seen.syncs.elements())
    assert waits == ["_local_scalar_dense", "an event", "an event"], (
        seen.syncs
    )  # Adam's step count, the norm, the copies
    state = checkpoint.read(checkpoint.path_of(tmp_path / "checkpoints", BATCH))
    for value, average in zip(state["averages"][""].values(), trainer.averages[""], strict=True):
        assert torch.equal(value, average.cpu())
