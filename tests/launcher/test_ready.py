"""A run and its dry run look up all that a configuration names before anything is done, and refuse in the same line."""

import logging
from pathlib import Path

import numpy as np
import pytest
from loops import tiny

from entroloop.data.errors import UserError
from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings
from entroloop.data.store import manifest
from entroloop.data.store.blocks import load_features
from entroloop.data.world import World
from entroloop.eval.report.runs import read_run
from entroloop.launcher.config import load, saved_with
from entroloop.launcher.preview.disk import least_bytes, source_of
from entroloop.launcher.preview.dry_run import dry_run
from entroloop.launcher.run import machine, runner
from entroloop.launcher.run.recipes import steps
from entroloop.launcher.submit import scripts

OWN = """
import numpy as np

class Mean:
    name, dim, digest = "calls itself otherwise", {dim}, "0" * 64
    def __call__(self, samples):
        return {returned}

mean = Mean()
"""
MEANS = "samples.reshape(len(samples), -1).mean(1, keepdims=True).astype(np.float32)"
OURS = "evaluation.encoders=[pixel,{0}:mean]"


def module(folder, name, dim=1, returned=MEANS):
    (folder / f"{name}.py").write_text(OWN.format(dim=dim, returned=returned))


def refused(config, line):
    """The run and the dry run both say the line, and nothing is begun."""
    for call in (lambda: runner.run(config, World(), lambda: False), lambda: dry_run(config)):
        with pytest.raises(UserError) as caught:
            call()
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not config.run_folder.exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ((OURS.format("ready_wrong"),), "for 2 samples it must return finite float32 [2, 7], got float32 [2, 1]"),
        ((OURS.format("ready_nan"),), "must return finite float32 [2, 1], row 0 holds NaN or infinity"),
        (("sample.guide=/nowhere", "sample.guide_weight=1"), "sample.guide=/nowhere: /nowhere: no such folder"),
        (("sample.guide=generation_0009", "sample.guide_weight=1"), "the run has generations 0 … 1"),
        (("tracking.trackers=[clearml]",), "tracking.trackers: clearml is not installed"),
    ],
)
def test_what_is_not_there_or_does_not_work_is_refused(tmp_path, monkeypatch, overrides, line):
    module(tmp_path, "ready_wrong", dim=7)
    module(tmp_path, "ready_nan", returned=f"{MEANS} * np.float32('nan')")
    monkeypatch.syspath_prepend(tmp_path)
    refused(tiny(tmp_path / "runs", *overrides), line)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Sealed vectors without labels."""
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32))
    import_dataset(str(folder / "x.npy"), folder / "set", Settings(shard_size=64))
    return folder / "set"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("data.limit=160",), "data.limit=160: has no effect on "),
        (("data.split=test",), "data.split=test: has no effect on "),
        (("data.size=150",), "data.size=150, data.heldout=64 and data.labelled=0 ask for 214 real samples"),
        (("loop.fresh.share=1", "generations=4"), "run out at generation 2"),
        (("selection.encoder=classifier", "data.labelled=30"), "the data set has no labels: use pixel"),
        (("train.labels=true",), "train.labels=true: the real data have no labels"),
        (("network.kind=unet",), "network.kind=unet: samples of shape [4] need mlp"),
        (("network.fold=[1,3,3]",), "network.fold=[1, 3, 3]: needs vectors of 9 features"),
        (("data.size=100", "loop.fresh.share=0.5", "generations=3"), "the 36 real images beside training"),
    ],
)
def test_real_data_that_do_not_serve_are_refused(tmp_path, vectors, overrides, line):
    refused(tiny(tmp_path / "runs", f"data.source={vectors}", "data.limit=null", *overrides), line)


def test_an_own_encoder_is_known_by_its_configured_name(tmp_path, monkeypatch, vectors, caplog):
    module(tmp_path, "ready_own")
    monkeypatch.syspath_prepend(tmp_path)
    ours = ("selection.encoder=ready_own:mean", "evaluation.encoders=[ready_own:mean]", "train.kimg=0.016")
    config = tiny(tmp_path, f"data.source={vectors}", "data.limit=null", *ours, "selection.options.trim=0.05")
    with caplog.at_level(logging.INFO):
        runner.run(config, World(), lambda: False)
    layout = Layout(config.run_folder)
    for step in (PREPARE, Step(0, "encode")):
        assert list(manifest.read(layout.of(step)).about["encoders"]) == ["ready_own:mean"]
        assert load_features(layout.of(step), "ready_own:mean").shape[1] == 1
    assert "ready_own:mean" in read_run(layout.run).rows[0].measures
    assert "calls itself otherwise" not in caplog.text


@pytest.fixture(scope="module")
def base(vectors, tmp_path_factory):
    """Sealed weights of a small network for these vectors."""
    config = tiny(tmp_path_factory.mktemp("base"), f"data.source={vectors}", *SMALL, "train.kimg=0.016")
    runner.run(config, World(), lambda: False, until=Step(0, "train"))
    return Layout(config.run_folder).of(Step(0, "train"))


SMALL = ("data.limit=null", "network={width: 8, depth: 1}")
NEON = ("sample.guide_kind=neon", "sample.guide_weight=1", "train.warm_start=true")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("network={width: 16, depth: 1}",), "a network of another shape: sample.guide_kind=neon needs equal networks"),
        (("train.objective=ddpm",), "trained as edm, not ddpm"),
        (("data.source=wine",), "a network for samples of shape [4], not [13]"),
    ],
)
def test_a_base_of_neon_that_does_not_fit_is_refused(tmp_path, vectors, base, overrides, line):
    guide = (f"data.source={vectors}", *SMALL, *NEON, f"sample.guide={base}")
    refused(tiny(tmp_path / "runs", *guide, *overrides), line)


PARTS = """
import torch

class Half(torch.nn.Linear):
    def __init__(self, shape, num_classes):
        super().__init__(shape[0], shape[0])
    def forward(self, x, condition, labels):
        return super().forward(x)[:, :2]

def backwards(denoise, noise, sigmas, labels=None, fresh_noise=None):
    return noise.T
"""


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("network={kind: 'ready_parts:Half'}", "network.kind=ready_parts:Half: returned [2, 2] for x [2, 4]"),
        ("sample.sampler=ready_parts:backwards", "sample.sampler=ready_parts:backwards: returned [4, 2] for noise"),
    ],
)
def test_own_networks_and_samplers_are_tried_before_anything_begins(tmp_path, monkeypatch, vectors, override, line):
    (tmp_path / "ready_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    refused(tiny(tmp_path / "runs", f"data.source={vectors}", "data.limit=null", "network={}", override), line)


WIDE = """
import numpy as np
from entroloop.data.sources.base import ArraySource

def rows():
    return ArraySource("points", "wide", np.broadcast_to(np.float32(0), (200, 10**11)), None, prefix="wide/")
"""


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("threads=100000",), "threads=100000: this machine has "),
        (("evaluation.encoders=[inception-paper]",), "encoder inception-paper: no weights: put "),
        (("evaluation.encoders=[inception]",), "none/inception-2015-12-05.pt: cannot be read as TorchScript"),
        (("selection.encoder=dinov2-paper",), "encoder dinov2-paper: no weights: put "),
        (("data.source=/nowhere",), "/nowhere: no such file or folder"),
        (("data.source=ready_wide:rows", "network={width: 8}"), "prepare writes at least about 128 TB, and "),
    ],
)
def test_what_this_machine_lacks_is_refused_after_the_forecast(tmp_path, monkeypatch, capsys, overrides, line):
    monkeypatch.setenv("ENTROLOOP_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    (tmp_path / "none").mkdir()
    (tmp_path / "none/inception-2015-12-05.pt").write_bytes(b"half of it")
    (tmp_path / "ready_wide.py").write_text(WIDE)
    monkeypatch.syspath_prepend(tmp_path)
    refused(tiny(tmp_path / "runs", *overrides), line)
    assert "network calls on single images in sampling" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["/proc/entroloop", "/dev/null/runs", "{tmp}/file"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, folder):
    (tmp_path / "file").touch()
    config = tiny(folder.format(tmp=tmp_path))
    refused(config, f"{config.run_folder.parent if 'proc' not in folder else '/proc'}".removesuffix("/runs"))


def test_a_slurm_script_asks_nothing_of_this_machine(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: far\nthreads: 100000\nfolder: /proc/runs\ndata: {source: /nowhere}\n")
    assert "#SBATCH" in scripts(load(path))


def test_a_run_in_the_home_folder_looks_at_the_space_before_each_step(tmp_path, vectors, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VECTORS", str(vectors.parent))
    monkeypatch.chdir(tmp_path)
    small = ("data.limit=null", "network={}", "train.kimg=0.016", "generations=1")
    config = tiny(Path("~/runs"), f"data.source=$VECTORS/{vectors.name}", *small)
    asked = []
    for module in (runner, machine):
        monkeypatch.setattr(module, "check_space", lambda config, source, step: asked.append((str(step), source.count)))
    runner.run(config, World(), lambda: False)
    every = [(str(step), 200) for step in steps(1)]
    assert asked == [*every, *every]  # of generation 0 before it begins, and before each step
    dry_run(config.model_copy(update={"threads": 10**6}))  # finished: nothing is needed
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    saved = (tmp_path / "runs/tiny/config.yaml").read_text()
    assert "folder: ~/runs\n" in saved
    assert "source: $VECTORS/set\n" in saved
    assert saved_with(tmp_path / "runs/tiny").folder == "~/runs"
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert saved_with(tmp_path / "moved/tiny").run_folder == tmp_path / "moved/tiny"


@pytest.mark.parametrize(
    ("override", "step"), [("loop.candidates=10000000000", "sample"), ("network.channels=[8,8000000]", "train")]
)
def test_a_first_generation_that_can_never_fit_the_disk_is_refused_before_it_begins(tmp_path, override, step):
    refused(tiny(tmp_path / "runs", override), f"generation 0 {step} writes at least about")


@pytest.mark.parametrize("step", [Step(0, "select"), Step(0, "train"), Step(0, "sample"), Step(0, "encode")])
def test_no_step_is_foreseen_to_write_more_than_it_does(once_run, step):
    config, layout = once_run
    written = [layout.of(step), *([layout.checkpoints(0)] if step.phase == "train" else [])]
    used = sum(path.stat().st_size for folder in written for path in folder.rglob("*") if path.is_file())
    least = least_bytes(config, source_of(config), step)
    assert 0.2 * used < least <= used


@pytest.fixture(scope="module")
def once_run(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("space"), "generations=1", "train.kimg=0.32", "keep.checkpoints=all")
    runner.run(config, World(), lambda: False)
    return config, Layout(config.run_folder)
