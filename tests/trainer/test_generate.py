"""Sampling: an image depends on its number alone; each shard is made once, by any process."""

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exported import MLP, export
from ranks import on_ranks

from entroloop.data import files
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.seeds import Part
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import seal_dataset, write_shard
from entroloop.data.world import World
from entroloop.trainer import diffusion
from entroloop.trainer import generate as generating
from entroloop.trainer.generate import Generator, SamplePlan, generate, sample_labels
from entroloop.trainer.network import casts_kept
from entroloop.trainer.sample_config import SampleConfig

PLAN = SamplePlan(run_seed=5, generation=2, count=50, shard_size=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["edm", "ddpm"])
def weights(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    export(folder, objective=request.param)
    return folder


@pytest.fixture(scope="module")
def edm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edm")
    export(folder)
    return folder


def made(folder):
    seal_dataset(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


KINDS: dict[str, dict[str, Any]] = {
    "heun": {},
    "churn": {"s_churn": 2.0},
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim"},
    "dpm-solver++": {"sampler": "dpm-solver++"},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_into_parts_gives_the_same_bytes(weights, tmp_path, kind):
    config = SampleConfig(steps=3, batch=8, **KINDS[kind])
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


@pytest.mark.parametrize("kind", [{"sampler": "ddpm"}, {"s_churn": 2.0}])
def test_an_image_does_not_depend_on_its_batch(weights, kind):
    source = Generator(weights, SampleConfig(steps=4, **kind), PLAN, CPU)
    whole, labels = source.samples(0, 12)
    part, some = source.samples(7, 9)
    assert np.abs(whole[7:9].astype(int) - part.astype(int)).max() <= 1  # other batch sizes may round otherwise
    assert labels is not None
    assert some is not None
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
    export(tmp_path, config=MLP, shape=(2,), num_classes=0)
    with pytest.raises(UserError, match=r"sample\.guidance=2"):
        Generator(tmp_path, SampleConfig(guidance=2.0), PLAN, CPU)


def test_classifier_free_guidance_and_a_guide_go_together(edm, tmp_path):
    """Guided by labels: both networks, or what is made of them, is the same."""
    export(tmp_path, moved=0.1)
    config = SampleConfig(steps=3, guidance=2.0, guide="some", guide_kind="sims", guide_weight=0.5)
    found = Generator(edm, config, PLAN, CPU, guide=tmp_path)
    each = [Generator(path, SampleConfig(steps=3, guidance=2.0), PLAN, CPU).denoise for path in (tmp_path, edm)]
    x, labels = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        theirs, own = (denoise(x, torch.tensor(0.5), labels) for denoise in each)
        torch.testing.assert_close(found.denoise(x, torch.tensor(0.5), labels), 1.5 * theirs - 0.5 * own)


def test_bf16_calls_the_network_in_bf16_and_keeps_the_state(edm):
    seen: dict[str, set[torch.dtype]] = {"conv": set(), "state": set()}
    half = Generator(edm, SampleConfig(steps=6, precision="bf16"), PLAN, CPU)
    call = half.denoise

    def spied(x, sigma, labels):
        seen["state"].add(x.dtype)
        y = call(x, sigma, labels)
        seen["state"].add(y.dtype)
        return y

    half.denoise = spied
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen["conv"].add(out.dtype) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        low, _ = half.samples(0, 16)
    finally:
        handle.remove()
    assert seen == {"conv": {torch.bfloat16}, "state": {torch.float32}}
    full, _ = Generator(edm, SampleConfig(steps=6), PLAN, CPU).samples(0, 16)
    difference = np.abs(low.astype(int) - full.astype(int))
    assert difference.max() > 0  # bf16 has 8 bits; of random weights, more than a trained network's
    assert difference.mean() < 4


def test_casts_that_are_kept_change_no_byte_of_the_samples(edm, monkeypatch):
    config = SampleConfig(steps=3, precision="bf16", guide="previous", guide_weight=1.5)
    found = []
    for keeps in (casts_kept, lambda device: contextlib.nullcontext()):
        monkeypatch.setattr(generating, "casts_kept", keeps)
        found.append(Generator(edm, config, PLAN, torch.device("cpu"), guide=edm).samples(0, 8)[0])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_precision_the_device_lacks_is_refused(edm, monkeypatch):
    with pytest.raises(UserError, match=r"sample\.precision=fp16: a CPU computes no network in fp16; use no or bf16"):
        Generator(edm, SampleConfig(precision="fp16"), PLAN, CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UserError, match=r"sample\.precision=bf16: this GPU has no bf16"):
        Generator(edm, SampleConfig(precision="bf16"), PLAN, torch.device("cuda"))


@pytest.mark.slow
def test_compile_compiles_one_graph_a_batch_size(edm, monkeypatch):
    """With inductor left out, whose start takes longer than all other tests here."""
    graphs = []
    compiled = torch.nn.Module.compile

    def count(graph, inputs):
        graphs.append([tuple(i.shape) for i in inputs if isinstance(i, torch.Tensor)])
        return graph.forward

    def without_inductor(self, **options):
        assert options == {"dynamic": False}
        compiled(self, backend=count, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", without_inductor)
    torch._dynamo.reset()
    eager = Generator(edm, SampleConfig(steps=2), PLAN, CPU)
    source = Generator(edm, SampleConfig(steps=2, compile=True), PLAN, CPU)
    for start, stop in ((0, 8), (8, 16), (16, 18), (18, 26)):
        np.testing.assert_array_equal(source.samples(start, stop)[0], eager.samples(start, stop)[0])
    assert len(graphs) == 2
    assert any((8, 1, 4, 4) in shapes for shapes in graphs)
    assert any((2, 1, 4, 4) in shapes for shapes in graphs)


def test_the_network_goes_on_while_a_shard_is_written(edm, tmp_path, monkeypatch):
    """The first shard is written only after the second one's images have been drawn."""
    second = threading.Event()
    write, drawn = write_shard, Generator.samples

    def slow(folder, number, *args, **options):
        assert threading.current_thread() is not threading.main_thread()
        assert number > 0 or second.wait(60)
        write(folder, number, *args, **options)

    def samples(self, start, stop):
        found = drawn(self, start, stop)
        if start == 16:
            second.set()
        return found

    monkeypatch.setattr(generating, "write_shard", slow)
    monkeypatch.setattr(Generator, "samples", samples)
    assert generate(edm, tmp_path, SampleConfig(steps=2, batch=16), PLAN, Part(), CPU) == 50
    assert len(made(tmp_path)) == 9


def test_a_full_disk_ends_sampling(edm, tmp_path, monkeypatch):
    def full(*args, **options):
        raise UserError("disk full") from OSError(errno.ENOSPC, "")

    drawn, batches = Generator.samples, []

    def watched(self, *args):
        batches.append(args)
        return drawn(self, *args)

    monkeypatch.setattr(Generator, "samples", watched)
    monkeypatch.setattr(generating, "write_shard", full)
    with pytest.raises(UserError, match="disk full"):
        generate(edm, tmp_path, SampleConfig(steps=2, batch=16), PLAN, Part(), CPU)
    assert len(batches) < 4


@pytest.mark.slow
def test_waiting_for_other_ranks_ends_with_their_shards_or_a_signal(edm, tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "POLL", 0.01)
    looks = []
    mine: dict[str, Any] = {"config": SampleConfig(steps=1), "plan": PLAN, "part": Part(0, 2), "device": CPU}
    generate(edm, tmp_path, **mine)

    def should_stop():
        looks.append(1)
        if len(looks) == 3:
            generate(edm, tmp_path, SampleConfig(steps=1), PLAN, Part(1, 2), CPU)
        return len(looks) > 100

    assert generate(edm, tmp_path, **mine, whole=Part(), should_stop=should_stop) == 0
    assert len(looks) == 3
    (tmp_path / "shard-000001.json").unlink()
    with pytest.raises(Interrupted, match="other ranks"):
        generate(edm, tmp_path, **mine, whole=Part(), should_stop=should_stop)


def test_a_rank_that_is_idle_makes_the_shards_that_do_not_come(edm, tmp_path, monkeypatch, caplog):
    config = SampleConfig(steps=1)
    monkeypatch.setattr(generating, "POLL", 0.01)
    monkeypatch.setattr(generating, "PATIENCE", 0.2)
    assert generate(edm, tmp_path / "a", config, PLAN, Part(1, 3), CPU, whole=Part()) == 50
    assert "no other rank has finished shard 0" in caplog.text
    assert generate(edm, tmp_path / "b", config, PLAN, Part(), CPU) == 50
    assert made(tmp_path / "a") == made(tmp_path / "b")


def make_all_on(world, weights, folder, config):
    generate(weights, folder, config, PLAN, Part(), world.device, show=False)


def test_two_ranks_that_make_the_same_shards_at_once_make_one(edm, tmp_path):
    config = SampleConfig(steps=1)
    on_ranks(2, make_all_on, edm, tmp_path / "a", config)
    generate(edm, tmp_path / "b", config, PLAN, Part(), CPU)
    assert made(tmp_path / "a") == made(tmp_path / "b")


def until_killed(weights, folder, config):
    """A rank that makes its first shard and is killed in the second."""
    torch.set_num_threads(1)  # libgomp's threads did not come with the fork
    looks = iter(range(100))

    def stop():
        if next(looks) >= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    generate(weights, folder, config, SamplePlan(5, 2, 80, 16), Part(1, 2), CPU, whole=Part(), should_stop=stop)


def test_the_survivor_of_two_ranks_makes_the_shards_of_the_dead_one(edm, tmp_path, monkeypatch):
    config, plan = SampleConfig(steps=1, batch=8), SamplePlan(5, 2, 80, 16)
    monkeypatch.setattr(generating, "PATIENCE", 0.2)
    dead = multiprocessing.get_context("fork").Process(target=until_killed, args=(edm, tmp_path / "a", config))
    dead.start()
    dead.join(120)
    assert dead.exitcode == -signal.SIGKILL
    assert not (tmp_path / "a" / "shard-000003.json").exists()
    generate(edm, tmp_path / "a", config, plan, Part(0, 2), CPU, whole=Part())
    generate(edm, tmp_path / "b", config, plan, Part(), CPU)
    files.sweep_temporaries(tmp_path / "a")  # as whoever takes the phase over does
    assert made(tmp_path / "a") == made(tmp_path / "b")


def make_on(world, weights, folder, config):
    mine = Part().split(world.rank, world.size)
    generate(weights, folder, config, PLAN, mine, world.device, whole=Part(), show=False)
    world.barrier()
    if world.is_main:
        seal_dataset(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heun", "churn", "dpm-solver++"])
def test_worlds_of_one_two_and_three_give_the_same_ids_and_bytes(edm, tmp_path, kind):
    config, found = SampleConfig(steps=3, batch=8, **KINDS[kind]), {}
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        if size == 1:
            make_on(World(), edm, folder, config)
        else:
            on_ranks(size, make_on, edm, folder, config)
        assert Dataset(folder).provenance.index.tolist() == list(range(50))
        found[size] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found[1] == found[2] == found[3]


def gaussian_epsilon(x, t, labels):
    """The exact noise estimate where samples are normal with deviation 0.5 on the model's scale."""
    sigma = diffusion.ddpm_sigmas()[t].float()[:, None]
    return x * sigma * (1 + sigma.square()).sqrt() / (0.25 + sigma.square())


@pytest.mark.slow
def test_a_ddpm_of_vectors_keeps_their_variance_and_their_tails(tmp_path, monkeypatch):
    """Estimates of images stay within [-1, 1]; of vectors, where one value in 23 lies beyond, they must not."""
    export(tmp_path, config=MLP, shape=(4,), num_classes=0, objective="ddpm")
    monkeypatch.setattr(generating, "denoiser_of", lambda *_: diffusion.denoiser("ddpm", gaussian_epsilon))
    config = SampleConfig(sampler="ddpm", steps=250, batch=2000)
    samples, _ = Generator(tmp_path, config, SamplePlan(5, 0, 2000, 2000), CPU).samples(0, 2000)
    assert samples.std() == pytest.approx(0.5, abs=0.03)  # at 250 steps ancestral sampling itself falls short a little
    assert abs(samples).max() > 1.5
    # 3 for a normal distribution; 2.4 where estimates are kept within [-1, 1]
    assert ((samples / samples.std()) ** 4).mean() == pytest.approx(3, abs=0.3)


def first_noise(denoise, noise, sigmas, labels=None, fresh_noise=None):
    return noise


def later_noise(denoise, noise, sigmas, labels=None, fresh_noise=None):
    return fresh_noise(0)


@pytest.mark.parametrize(("sampler", "factor"), [("first_noise", 0.5), ("later_noise", 1.0)])
def test_the_temperature_scales_the_first_noise_and_no_other(edm, sampler, factor):
    drawn = {}
    for temperature in (1.0, 0.5):
        one = Generator(edm, SampleConfig(sampler=f"{__name__}:{sampler}", temperature=temperature), PLAN, CPU)
        scale: Any = SimpleNamespace(from_model=lambda x: x)
        one.scale = scale
        drawn[temperature] = one.samples(0, 6)[0]
    np.testing.assert_array_equal(drawn[0.5], factor * drawn[1.0])
