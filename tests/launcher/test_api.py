import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from loops import TINY, tiny, tiny_file

import entroloop
from entroloop.data.errors import Interrupted, UserError
from entroloop.launcher import api
from entroloop.launcher.config import Config


@pytest.fixture(scope="module")
def run(finished):
    return entroloop.load_run(str(finished.run))


def test_a_configuration_is_that_of_the_command_line(tmp_path):
    path = tiny_file(tmp_path)
    texts = ["train.kimg=0.5", "evaluation.encoders=[pixel]", "train.lr=1e-5", "name=two words"]
    values = {"train.kimg": 0.5, "evaluation.encoders": ["pixel"], "train.lr": 1e-5, "name": "two words"}
    loaded = entroloop.Config.load(str(path), values)
    assert isinstance(loaded, Config)
    assert loaded == entroloop.Config.load(path, texts)
    assert loaded.train.lr == 1e-5
    with pytest.raises(UserError, match=r"train\.kimgs: unknown key; did you mean train\.kimg"):
        entroloop.Config.load(path, {"train.kimgs": 3})


@pytest.mark.slow
def test_run_does_what_is_left_and_keeps_the_callers_threads(tmp_path, monkeypatch):
    config = tiny(tmp_path, "generations=1", "train.kimg=0.08", "threads=2")
    before = torch.get_num_threads()
    asked = iter([False] * 3 + [True] * 99)
    with pytest.raises(Interrupted):
        entroloop.run(config, should_stop=asked.__next__)
    assert not entroloop.load_run(config.run_folder).finished
    run = entroloop.run(config)
    assert run.finished
    assert run.config == config
    assert torch.get_num_threads() == before
    with pytest.raises(UserError, match=r"evaluation\.encoders"):
        entroloop.run(tiny(tmp_path, "generations=1", "train.kimg=0.08", "evaluation.encoders=[inception]"))


def test_a_finished_run_reads_as_arrays_and_models(run, finished):
    assert run.finished
    assert run.trained == [0, 1]
    assert [row.generation for row in run.rows()] == [0, 1]
    samples, features = run.samples(1).all(), run.features(1)
    assert samples.dtype == np.uint8
    np.testing.assert_array_equal(features, samples.reshape(len(samples), -1).astype(np.float32))
    np.testing.assert_array_equal(run.features(None, "pixel"), run.real().all().reshape(len(run.real()), -1))
    assert len(run.training_set(1)) == TINY["data"]["size"]
    assert set(run.training_set(1).provenance.generation) == {0}
    network = run.weights(1)
    assert isinstance(network, torch.nn.Module)
    assert not network.training
    for wrong in (lambda: run.samples(7), lambda: run.features(1, "inception"), lambda: run.weights(0, "none")):
        with pytest.raises(UserError, match="generation_000"):
            wrong()
    with pytest.raises(UserError, match="not a run"):
        entroloop.load_run(finished.run.parent)


def test_the_frame_has_one_line_per_generation_and_encoder(run):
    pandas = pytest.importorskip("pandas")
    frame = run.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["generation"].tolist() == [0, 1]
    assert frame["encoder"].tolist() == ["pixel", "pixel"]
    assert frame["frechet_distance"].tolist() == [row.value("pixel", "frechet_distance") for row in run.rows()]
    assert frame["real_share"].tolist() == [1.0, 0.0]


def test_without_pandas_the_frame_names_its_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"entroloop\[frames\]"):
        run.frame()


def test_samples_are_those_of_the_run_at_its_seed_and_new_ones_at_another(run, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.run.rglob("*")}
    samples, labels = entroloop.sample(run, 40, seed=run.config.seed, generation=0)
    np.testing.assert_array_equal(samples, run.samples(0).all()[:40])
    assert labels is None
    other = entroloop.sample(run, 8, seed=run.config.seed + 1)
    last = entroloop.sample(run, 8, seed=run.config.seed + 1, generation=1, device="cpu")
    np.testing.assert_array_equal(other.samples, last.samples)
    assert (other.samples != run.samples(1).all()[:8]).any()
    assert {path: path.stat().st_mtime_ns for path in finished.run.rglob("*")} == before
    for n, seed, generation in ((0, 0, 0), (3, -1, 0), (3, 0, 2)):
        with pytest.raises(UserError):
            entroloop.sample(run, n, seed, generation=generation)


@pytest.mark.parametrize(("device", "attention"), [("cuda", "xformers"), ("cpu", "sdpa")])
def test_new_samples_are_drawn_with_the_attention_of_the_run_where_it_runs(run, monkeypatch, device, attention):
    asked = []

    def made(*given):
        asked.append(given[-1])
        raise UserError("far enough")

    monkeypatch.setattr(api, "Generator", made)
    network = run.config.network.model_copy(update={"attention_backend": "xformers"})
    other = dataclasses.replace(run, config=run.config.model_copy(update={"network": network}))
    with pytest.raises(UserError, match="far enough"):
        entroloop.sample(other, 1, seed=1, device=device)
    assert asked == [attention]


def test_the_package_is_imported_in_a_tenth_of_a_second():
    """The best of several, in processes of their own. It imports no room."""
    code = "import time; start = time.perf_counter(); import entroloop; print(time.perf_counter() - start)"
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(one.stdout) for one in found) <= 0.1


def test_every_public_name_is_documented():
    for name in entroloop.__all__:
        thing = getattr(entroloop, name)
        assert isinstance(thing, str) or thing.__doc__, name
