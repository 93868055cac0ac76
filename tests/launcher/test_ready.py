"""A run and its dry run look up all that a configuration names before anything is done, and refuse in the same line."""

import logging

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
from entroloop.launcher.preview.dry_run import describe
from entroloop.launcher.run import runner

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
    for call in (lambda: runner.run(config, World(), lambda: False), lambda: describe(config)):
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
        (("data.size=150",), "data.size=150, data.heldout=64 and data.labelled=0 ask for 214 real images"),
        (("loop.fresh.share=1", "generations=4"), "run out at generation 2"),
        (("selection.encoder=classifier", "data.labelled=30"), "the data set has no labels: use pixel"),
        (("train.labels=true",), "train.labels=true: the real data have no labels"),
        (("network.kind=unet",), "network.kind=unet: samples of shape [4] need mlp"),
        (("network.fold=[1,3,3]",), "network.fold=[1, 3, 3]: needs vectors of 9 features"),
    ],
)
def test_real_data_that_do_not_serve_are_refused(tmp_path, vectors, overrides, line):
    refused(tiny(tmp_path / "runs", f"data.source={vectors}", *overrides), line)


def test_an_own_encoder_is_known_by_its_configured_name(tmp_path, monkeypatch, vectors, caplog):
    module(tmp_path, "ready_own")
    monkeypatch.syspath_prepend(tmp_path)
    ours = ("selection.encoder=ready_own:mean", "evaluation.encoders=[ready_own:mean]", "train.kimg=0.016")
    config = tiny(tmp_path, f"data.source={vectors}", *ours, "selection.options.trim=0.05")
    with caplog.at_level(logging.INFO):
        runner.run(config, World(), lambda: False)
    layout = Layout(config.run_folder)
    for step in (PREPARE, Step(0, "encode")):
        assert list(manifest.read(layout.of(step)).about["encoders"]) == ["ready_own:mean"]
        assert load_features(layout.of(step), "ready_own:mean").shape[1] == 1
    assert "ready_own:mean" in read_run(layout.run).rows[0].measures
    assert "calls itself otherwise" not in caplog.text
