"""Vectors go through the same loop: a real table of measurements, and the points of the plane in the report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from loops import TINY
from present import present

from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import REAL, Provenance, seal_dataset, write_shard
from entroloop.data.world import World
from entroloop.eval.report import page as report
from entroloop.eval.report import points
from entroloop.eval.report.runs import read_run
from entroloop.launcher import config as configuration
from entroloop.launcher import status
from entroloop.launcher.preview.dry_run import describe
from entroloop.launcher.run import runner
from entroloop.launcher.run.recipes import steps

pytestmark = pytest.mark.slow


def run(folder, source, *overrides):
    raw = {**TINY, "data": {**TINY["data"], "source": source, "heldout": 48}, "network": {"width": 16, "depth": 1}}
    config = configuration.compose(raw, [f"folder={folder}", *overrides], "tiny")
    runner.run(config, World(), lambda: False)
    return Layout(config.run_folder)


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    return run(tmp_path_factory.mktemp("wine"), "wine", "train.labels=true")


def test_a_real_table_runs_through_the_loop(wine):
    for step in steps(2):
        assert manifest.problems(wine.of(step)) == []
    chosen = Dataset(wine.of(Step(1, "select")))
    assert chosen.shape == (13,)
    assert chosen.all().dtype == np.float32
    assert np.isfinite(chosen.all()).all()
    assert set(present(chosen.labels)) == {0, 1, 2}
    row = json.loads((wine.of(Step(1, "evaluate")) / "metrics.jsonl").read_text())
    assert row["measures"]["pixel"]["frechet_distance"] > 0
    assert row["measures"]["pixel"]["generalization_score"] > 0


def test_streamed_vectors_seal_the_same_bytes(wine, tmp_path):
    streamed = run(tmp_path, "wine", "train.labels=true", "data.mode=streaming")
    for step in steps(2):
        assert manifest.read(streamed.of(step)).files == manifest.read(wine.of(step)).files


def test_the_report_projects_the_table_and_speaks_of_vectors(wine, tmp_path):
    found, features = points.clouds(read_run(wine.run))
    assert features == 13
    assert [cloud.generation for cloud in found] == [0, 1]
    chosen, candidates = len(found[1].training), len(found[0].samples)
    assert candidates > chosen
    assert [cloud.rejected.shape for cloud in found] == [(0, 2), (candidates - chosen, 2)]
    training = Dataset(wine.of(Step(0, "select"))).all()
    variances = np.linalg.eigvalsh(np.cov(training.T.astype(np.float64), bias=True))[::-1]
    np.testing.assert_allclose(found[0].training.var(0), variances[:2], rtol=1e-4)
    out = tmp_path / "report.html"
    report.write([wine.run], out)
    text = out.read_text()
    assert "Scatter plots of training sets and samples, generations 0 to 1" in text
    assert "two principal components of 13 features" in text
    assert "generated images" not in text
    assert "training vector" in text
    assert "vector features" in text
    lines = [line for line in text.splitlines() if re.search(r"\bpixel\b", line)]
    assert [re.sub(r"</?d[dt]>", " ", line).split()[0] for line in lines] == [
        "selection.encoder",
        "evaluation.encoders",
    ]
    report.write([wine.run], tmp_path / "report.json", "json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert any("in vector features" in words for words in found["headline"])
    assert "pixel" not in " ".join(found["headline"])
    assert set(found["runs"][0]["rows"][0]["measures"]) == {"pixel"}


def test_status_and_list_speak_of_vectors(wine):
    state, listed = status.inspect(wine.run), status.listed(wine.run)
    assert set(state["spread_gap"]) == {"pixel"}  # the key of a row
    assert "spread gap (vector)" in status.table(state)
    assert (listed[0]["shown"], listed[0]["vectors"]) == ("pixel", True)
    assert status.list_table(listed).splitlines()[1].split()[3] == "vector"


def test_two_features_are_drawn_as_they_are(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    for g in (0, 1):
        for name, generation, block in (("selected", REAL, rows), ("samples", g, 3 * rows)):
            folder = tmp_path / f"generation_{g:04d}" / name
            where = Provenance(np.full(40, generation), np.arange(40), ("",) * 40)
            write_shard(folder, 0, block, None, where, first_key=0)
            seal_dataset(folder)
    (tmp_path / "config.yaml").write_text("format: 1\nname: plane\ngenerations: 3\n")
    found, features = points.clouds(read_run(tmp_path))
    assert features == 2
    assert len(found) == 2
    np.testing.assert_array_equal(found[1].training, rows)
    np.testing.assert_array_equal(found[1].samples, 3 * rows)
    low, high = rows.min(0) - 0.25 * np.ptp(rows, 0), rows.max(0) + 0.25 * np.ptp(rows, 0)
    expected = sum(bool(((p < low) | (p > high)).any()) for p in 3 * rows)
    assert points.outside(found) == expected > 0
    figure = points.scatter(found)
    drawn = [axes for axes in figure.axes if axes.collections]
    assert len(drawn) == 4
    np.testing.assert_allclose(np.asarray(drawn[0].collections[0].get_offsets(), float), rows.astype(float))


def test_the_shipped_configuration_is_ten_generations_of_the_mixture():
    config = configuration.load(Path(__file__).parents[2] / "configs" / "mixture.yaml")
    said = describe(config)
    assert "10 generations" in said
    assert "at most about" in said
