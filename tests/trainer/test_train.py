"""The step loop: schedules, resuming bit for bit, labels, flips, and a loss that is not finite."""

import contextlib
import gc
import json
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.optimization import get_scheduler
from loops import tiny

from entroloop.data.errors import Failed, Interrupted, UserError
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.data.streams.resident import Resident
from entroloop.data.world import World
from entroloop.launcher.run import runner
from entroloop.trainer import checkpoint
from entroloop.trainer import train as training
from entroloop.trainer.network import casts_kept, load
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.train import Trainer, TrainJob, train
from entroloop.trainer.train_config import TrainConfig, learning_rate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    prototypes = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 4), dtype=np.uint8)
    images = prototypes[np.arange(24) % 3]
    where = Provenance(np.full(24, -1), np.arange(24), ("",) * 24)
    write_shard(folder, 0, images, np.arange(24) % 3, where, first_key=0)
    seal_dataset(folder)
    return Resident(Dataset(folder))


def job(folder, **changes):
    values = {"kimg": 0.2, "batch": 8, "warmup_kimg": 0.05, "checkpoint_kimg": 0.04, "log_kimg": 0.04, **changes}
    return TrainJob(
        config=TrainConfig(**values), network=NetworkConfig(channels=(8,), norm_groups=4, dropout=0.1), seed=1,
        num_classes=3, checkpoints=folder / "checkpoints", weights=folder / "weights",
        stats=folder / "stats.jsonl", made_from={},
    )  # fmt: skip


def weights_of(folder):
    return (folder / "weights/unet/diffusion_pytorch_model.safetensors").read_bytes()


VARIANTS = [
    {},
    {"objective": "ddpm", "schedule": "linear"},
    {"labels": True, "flip": True, "ema": {"rule": "power"}},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS)
def test_stopped_at_every_third_step_it_ends_with_the_same_weights(data, tmp_path, changes):
    train(job(tmp_path / "whole", **changes), data, World())
    looks = 0

    def should_stop():
        nonlocal looks
        looks += 1
        return looks % 3 == 0

    finished = False
    while not finished:
        with contextlib.suppress(Interrupted):
            train(job(tmp_path / "pieces", **changes), data, World(), should_stop=should_stop)
            finished = True
    assert looks == 25  # no step was done twice
    assert weights_of(tmp_path / "pieces") == weights_of(tmp_path / "whole")
    assert manifest.problems(tmp_path / "pieces" / "weights") == []


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(data, tmp_path, caplog):
    train(job(tmp_path / "whole"), data, World())
    looks = iter([False] * 12 + [True])
    with pytest.raises(Interrupted):
        train(job(tmp_path / "cut"), data, World(), should_stop=lambda: next(looks))
    saved = sorted((tmp_path / "cut/checkpoints").iterdir())
    assert len(saved) == 2
    saved[-1].write_bytes(saved[-1].read_bytes()[:1000])
    train(job(tmp_path / "cut"), data, World())
    assert saved[-1].name in caplog.text
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")


def test_a_checkpoint_of_another_network_is_refused(data, tmp_path):
    looks = iter([False] * 6 + [True])
    with pytest.raises(Interrupted):
        train(job(tmp_path), data, World(), should_stop=lambda: next(looks))
    other = job(tmp_path)
    other.network = NetworkConfig(channels=(16,), norm_groups=4)
    with pytest.raises(UserError, match="another network"):
        train(other, data, World())


@pytest.mark.slow
def test_the_loss_falls_and_is_logged(data, tmp_path):
    train(job(tmp_path, kimg=1, lr=1e-2, log_kimg=0.008, checkpoint_kimg=1), data, World())
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    assert lines[-1]["kimg"] == pytest.approx(1, abs=0.05)
    assert 0.05 < lines[-1]["memory_gib"] < 100


def test_a_loss_that_is_not_finite_stops_with_step_levels_and_ids(data, tmp_path):
    trainer_job = job(tmp_path)
    looks = iter([False] * 6 + [True])
    with pytest.raises(Interrupted):
        train(trainer_job, data, World(), should_stop=lambda: next(looks))
    kept = sorted((tmp_path / "checkpoints").iterdir())
    state = checkpoint.read(kept[-1])
    weights = state["engine"]["weights"]
    state["engine"]["weights"] = {k: torch.full_like(v, float("nan")) for k, v in weights.items()}
    checkpoint.save(kept[0].parent, state["seen"], state, keep=2)
    with pytest.raises(Failed, match=r"step 8, which ends at 0\.064 kimg: sigma .* training images \["):
        train(trainer_job, data, World())
    assert sorted((tmp_path / "checkpoints").iterdir()) == kept
    assert not manifest.is_sealed(tmp_path / "weights")


def test_a_gradient_that_is_not_finite_stops_before_a_checkpoint(data, tmp_path, monkeypatch):
    steps = iter(range(1, 100))

    def spoiled(self, *part):
        loss, sigma = whole(self, *part)
        if next(steps) == 5:
            parameter = self.engine.parameters[0]
            loss = loss + (parameter.sum() - parameter.sum().detach()) * 1e38 * 1e38
        return loss, sigma

    whole = Trainer._loss
    monkeypatch.setattr(Trainer, "_loss", spoiled)
    with pytest.raises(Failed, match=r"the (loss|gradient) is not finite in step 5, which ends at 0\.040 kimg"):
        train(job(tmp_path), data, World())
    assert not (tmp_path / "checkpoints").exists()


def test_fp16_that_overflows_moves_neither_weights_nor_averages(data, tmp_path, monkeypatch):
    """With a real gradient scaler, which CPUs have too, in accelerate's place for it."""
    trainer = Trainer(job(tmp_path), data, World())
    batches = data.batches(seed=1, seen=0, until=48, batch=8)
    trainer.step(next(batches))
    accelerator = trainer.engine.accelerator
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    optimizer = AcceleratedOptimizer(trainer.engine.optimizer.optimizer, device_placement=False, scaler=scaler)
    accelerator.scaler, accelerator._optimizers, trainer.engine.optimizer = scaler, [optimizer], optimizer
    accelerator.native_amp = True
    monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
    trainer.job.config = trainer.engine.config = trainer.job.config.model_copy(update={"precision": "fp16"})

    def held():
        return [x.clone() for x in (*trainer.engine.masters, *trainer.averages[""])]

    before = held()
    _, _, norm = trainer.step(next(batches))
    assert not torch.isfinite(norm)
    assert scaler.get_scale() == 2.0**126
    assert all(map(torch.equal, before, held()))
    scaler.update(1024.0)
    _, _, norm = trainer.step(next(batches))
    assert 0 < norm < float("inf")
    assert not any(map(torch.equal, before, held()))


def test_a_warm_start_exports_the_network_that_was_trained(tmp_path):
    """Vectors: their network has random frequencies, which are no parameters."""
    where = Provenance(np.full(24, -1), np.arange(24), ("",) * 24)
    vectors = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    write_shard(tmp_path / "set", 0, vectors, None, where, first_key=0)
    seal_dataset(tmp_path / "set")
    rows = Resident(Dataset(tmp_path / "set"))
    first = replace(job(tmp_path / "first", ema={"rule": "none"}), num_classes=0)
    train(first, rows, World())
    warm = load(first.weights)
    second = replace(job(tmp_path / "second", ema={"rule": "none"}), num_classes=0, seed=2, warm=warm)
    trainer = Trainer(second, rows, World())
    assert all(map(torch.equal, trainer.engine.masters, warm.parameters()))
    trainer.step(next(rows.batches(seed=2, seen=0, until=8, batch=8)))
    trainer.export()
    x, noise = torch.randn(4, 3), torch.rand(4)
    assert torch.equal(load(second.weights)(x, noise, None), trainer.engine.network.eval()(x, noise, None))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_learning_rate_is_that_of_diffusers_schedulers(schedule):
    """But for the warm-up, where ours is one step ahead: theirs does nothing in the first."""
    config = TrainConfig(kimg=100, batch=100, lr=1.0, warmup_kimg=10, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=100, num_training_steps=1000)
    for step in range(1000):
        expected = optimizer.param_groups[0]["lr"] + (0.01 if step < 100 else 0)
        assert learning_rate(config, 100 * step) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        theirs.step()


def test_the_average_follows_the_weights(data, tmp_path):
    trainer = Trainer(job(tmp_path, ema={"rule": "none"}), data, World())
    for batch in data.batches(seed=1, seen=0, until=24, batch=8):
        trainer.step(batch)
    assert all(torch.equal(a, w) for a, w in zip(trainer.averages[""], trainer.engine.masters, strict=True))


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"channels_last": True}, 1e-3),  # the same sums in another order
        ({"precision": "bf16"}, 3e-2),  # 8 bits of mantissa in the network's calls
        pytest.param({"compile": True}, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_ways_of_computing_change_losses_by_rounding_only(data, tmp_path, changes, tolerance):
    found = []
    for name, extra in (("plain", {}), ("other", changes)):
        this = job(tmp_path / name, log_kimg=0.008, **extra)
        this.network = NetworkConfig(channels=(8,), norm_groups=4)  # dropout draws its masks in the order of memory
        train(this, data, World())
        lines = (tmp_path / name / "stats.jsonl").read_text().splitlines()
        found.append(torch.tensor([json.loads(line)["loss"] for line in lines]))
    assert len(found[0]) == 25
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_casts_that_are_kept_change_no_byte_of_the_weights(precision, data, tmp_path, monkeypatch):
    found = []
    for keeps in (casts_kept, lambda device: contextlib.nullcontext()):
        monkeypatch.setattr(training, "casts_kept", keeps)
        trainer = Trainer(job(tmp_path, precision=precision, micro_batch=2), data, World())
        for batch in data.batches(seed=1, seen=0, until=24, batch=8):
            trainer.step(batch)
        found.append([m.clone() for m in trainer.engine.masters])
    assert all(map(torch.equal, *found))


def seen_by_newest(folder):
    found = checkpoint.newest(folder)
    assert found is not None
    return found["seen"]


def test_a_changed_bit_in_a_checkpoint_is_found_and_it_does_not_outlast_better_ones(tmp_path, caplog):
    state = {"seen": 8, "weights": torch.arange(5000.0)}
    checkpoint.save(tmp_path, 8, state, keep=1)
    path = checkpoint.save(tmp_path, 16, {**state, "seen": 16}, keep=2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert seen_by_newest(tmp_path) == 8
    assert "images-000000000016.pt: damaged checkpoint" in caplog.text
    kept = checkpoint.save(tmp_path, 12, {**state, "seen": 12}, keep=1)
    assert list(tmp_path.iterdir()) == [kept]
    assert seen_by_newest(tmp_path) == 12


def test_flips_of_vectors_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.flip=true: vectors, and latents among them, have no mirror images"):
        runner.run(tiny(tmp_path, "data.source=mixture", "train.flip=true"), World(), lambda: False)


def test_any_changed_bit_of_a_checkpoint_is_found(tmp_path):
    """Also one in the directory of torch's archive, which keeps no checksum of itself."""
    state = {"engine": {"weights": {"a": torch.zeros(3)}}, "seen": 8}
    path = checkpoint.save(tmp_path, 8, state, keep=1)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert checkpoint.newest(tmp_path) is None, place
    for length in (0, 10, 64, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert checkpoint.newest(tmp_path) is None, length
    path.write_bytes(whole)
    assert seen_by_newest(tmp_path) == 8


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_nothing_of_a_finished_training_stays_alive(precision, data, tmp_path, monkeypatch):
    kept: list[weakref.ref[Any]] = []

    class Spy(Trainer):
        def __init__(self, *given):
            super().__init__(*given)
            kept.extend(weakref.ref(x) for x in (self.engine.network, *self.engine.parameters, *self.averages[""]))

    monkeypatch.setattr(training, "Trainer", Spy)
    gc.disable()
    try:
        train(job(tmp_path, precision=precision), data, World())
        assert kept
        assert not any(ref() is not None for ref in kept)
    finally:
        gc.enable()


def test_too_little_memory_is_one_line_that_names_the_key(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *_: torch.empty(1 << 50))
    with pytest.raises(Failed, match=r"^out of memory \(.*\): lower train\.micro_batch"):
        train(job(tmp_path), data, World())
