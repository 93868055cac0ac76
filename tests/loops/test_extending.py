"""The examples of docs/extending.md run as printed, from a file beside the configuration."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from entroloop.data.catalogue import ENCODERS, SOURCES
from entroloop.data.jobs import Job
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.blocks import load_features
from entroloop.data.store.shards import REAL
from entroloop.data.world import World
from entroloop.eval.catalogue import MEASURES
from entroloop.eval.report.runs import read_run
from entroloop.launcher import config as configuration
from entroloop.launcher import submit, sweep
from entroloop.launcher.run import runner
from entroloop.launcher.run.recipes import steps
from entroloop.selection.catalogue import DISTANCES, STRATEGIES
from entroloop.trainer.catalogue import NETWORKS, OBJECTIVES, SAMPLERS, TRACKERS

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"
REGISTRIES = (SOURCES, ENCODERS, STRATEGIES, DISTANCES, SAMPLERS, NETWORKS, OBJECTIVES, MEASURES, TRACKERS)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL)


def forget(monkeypatch):
    """As in a process that has not seen the examples."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "mine.py").exists()])
    sys.modules.pop("mine", None)
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_loaded", {})


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The configuration of the page, with its file beside it."""
    forget(monkeypatch)
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("python")))
    path = tmp_path / "mine.yaml"
    path.write_text(f"{blocks('yaml')[0]}folder: {tmp_path / 'runs'}\n")
    yield path
    forget(monkeypatch)


def test_the_examples_run_from_beside_the_configuration(mine, monkeypatch):
    config = configuration.load(mine)
    assert config.sample.nfe == 5
    assert sys.path[-1] == str(mine.parent)
    runner.run(config, World(), lambda: False)
    layout = Layout(config.run_folder)
    for step in steps(2):
        assert manifest.problems(layout.of(step)) == []
    assert load_features(layout.generation(REAL) / "features", "mine:Radius").shape[1] == 2
    about = json.loads((layout.of(Step(1, "train")) / "network.json").read_text())
    assert about == {"kind": "mine:Shallow", "shape": [2], "num_classes": 0, "options": {"width": 16}}
    row = read_run(layout.run).rows[1]
    distance = row.value("mine:Radius", "mine:distance_of_means")
    assert distance is not None
    assert distance >= 0
    assert row.encoder("mine:Radius").resize == "none"
    shown = [json.loads(line) for line in (layout.run / "tracking" / "entroloop.jsonl").read_text().splitlines()]
    assert any("train/loss" in line for line in shown)

    # What is saved with the run finds the file from anywhere.
    forget(monkeypatch)
    assert configuration.load(layout.config).modules == str(mine.parent)
    assert "mine" in sys.modules


def test_runs_of_a_sweep_and_slurm_jobs_find_the_file_too(mine, monkeypatch):
    raw = yaml.safe_load(mine.read_text())
    mine.write_text(yaml.safe_dump({**raw, "generations": 1, "sweep": {"grid": {"seed": [3]}}}))
    sweep.run(mine, [], lambda: False)
    assert (mine.parent / "runs" / "mine" / "report.html").is_file()

    config = configuration.load(mine, ["name=submitted", "slurm.setup=[conda activate mine]"])
    jobs: list[Job] = []
    monkeypatch.setattr(submit, "_check_cluster", lambda config: None)
    monkeypatch.setattr(submit, "_submit", lambda make, *_: jobs.extend(make()))
    submit.submit_run(config)
    assert jobs
    for job in jobs:
        forget(monkeypatch)
        assert configuration.load(Path(job.arguments[1])).settled() == config.settled()


def test_every_example_is_used_by_the_configuration():
    names = re.findall(r"^(?:class|def) (\w+)|^(\w+) = Objective", "\n".join(blocks("python")), flags=re.MULTILINE)
    used = set(re.findall(r"mine:(\w+)", blocks("yaml")[0]))
    assert used == {a or b for a, b in names} - {"estimate", "loss"}


def test_the_page_names_every_catalogue():
    page = DOCS.read_text()
    for registry in REGISTRIES:
        assert f"`{registry.group}`" in page
        assert all(facts.target.startswith("entroloop.") for facts in registry.built_in.values())
        for name in registry.built_in:
            if registry is not TRACKERS:  # their file needs accelerate
                registry.load(name)
