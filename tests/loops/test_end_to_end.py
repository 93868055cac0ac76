"""The whole loop on digits in seconds: it seals every step, resumes with the same bytes, and does nothing twice."""

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from forked import entroloop
from loops import VECTORS, command, python_command, sealed_bytes, tiny, tiny_file

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.world import World
from entroloop.launcher.preview.dry_run import dry_run
from entroloop.launcher.run import runner
from entroloop.launcher.run.recipes import steps

pytestmark = pytest.mark.slow


def run(config, until=None):
    runner.run(config, World(), lambda: False, until=until)
    return Layout(config.run_folder)


def test_every_step_is_sealed_and_sound(finished):
    for step in steps(2):
        assert manifest.problems(finished.of(step)) == []
    assert Dataset(finished.of(Step(0, "select"))).provenance.generation.tolist() == [-1] * 48
    chosen = Dataset(finished.of(Step(1, "select")))
    assert chosen.provenance.generation.tolist() == [0] * 48
    assert len(set(chosen.provenance.index.tolist())) == 48
    candidates = Dataset(finished.of(Step(0, "sample")))
    assert len(candidates) == 96
    np.testing.assert_array_equal(chosen.all(), candidates.take(chosen.provenance.index))


def test_the_row_holds_the_measures_and_the_baseline(finished):
    rows = [json.loads((finished.of(Step(g, "evaluate")) / "metrics.jsonl").read_text()) for g in (0, 1)]
    assert rows[0]["provenance"] == {"real": 1.0}
    assert rows[1]["provenance"] == {"0": 1.0}
    assert rows[0]["measures"]["pixel"]["frechet_distance"] > 0
    assert rows[0]["baseline"]["measures"]["pixel"]["frechet_distance"] > 0
    assert "baseline" not in rows[1]


def test_diffusers_loads_the_exported_network(finished):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel.from_pretrained(finished.of(Step(0, "train")) / "unet")
    assert unet(torch.zeros(1, 1, 8, 8), 0).sample.shape == (1, 1, 8, 8)


def test_nothing_sealed_names_a_time_host_or_absolute_path(finished, tmp_path):
    moved = tmp_path / "moved somewhere else"
    shutil.copytree(finished.run, moved)
    again = run(tiny(tmp_path / "other folder", "name=again"))
    assert sealed_bytes(moved) == sealed_bytes(again.run)


def test_a_finished_run_is_left_alone(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.run.rglob("*") if p.is_file() and p.name != "state.json"}
    run(tiny(finished.run.parent))
    after = {p: p.stat().st_mtime_ns for p in finished.run.rglob("*") if p.is_file() and p.name != "state.json"}
    assert after == before


@pytest.mark.parametrize("run", [run, dry_run])
def test_another_configuration_is_refused_with_the_difference(finished, run):
    with pytest.raises(UserError, match=r"train\.lr is 0\.001 there, 0\.002 here"):
        run(tiny(finished.run.parent, "train.lr=0.002"))
    with pytest.raises(UserError, match="generations is 2 there, 1 here"):
        run(tiny(finished.run.parent, "generations=1"))


@pytest.mark.parametrize("run", [run, dry_run])
def test_a_sweep_is_not_taken_for_a_run(finished, run):
    with pytest.raises(UserError, match="is a sweep, not a single run: choose another name= or folder="):
        run(tiny(finished.run.parent.parent, f"name={finished.run.parent.name}"))


@pytest.mark.parametrize("run", [run, dry_run])
def test_a_folder_of_other_things_is_not_taken_for_a_run(tmp_path, run):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"not a run .no config\.yaml., and holds other files"):
        run(tiny(tmp_path))
    assert [p.name for p in (tmp_path / "tiny").iterdir()] == ["thesis.tex"]


def test_more_generations_go_on_from_a_finished_run(finished, tmp_path):
    shutil.copytree(finished.run, tmp_path / "tiny")
    before = sealed_bytes(tmp_path / "tiny")
    longer = run(tiny(tmp_path, "generations=3"))
    after = sealed_bytes(longer.run)
    assert before.items() < after.items()
    assert manifest.is_sealed(longer.of(Step(2, "evaluate")))


@pytest.mark.parametrize("paradigm", ["accumulate", "accumulate-subsample"])
def test_pools_of_the_other_paradigms(tmp_path, paradigm):
    layout = run(
        tiny(tmp_path, f"loop.paradigm={paradigm}", "generations=3", "selection.strategy=random", of=VECTORS),
        until=Step(2, "select"),
    )
    first, second = (Dataset(layout.of(Step(g, "select"))).provenance for g in (1, 2))
    if paradigm == "accumulate":
        assert np.unique(first.generation, return_counts=True)[1].tolist() == [48, 48]
        assert np.unique(second.generation, return_counts=True)[1].tolist() == [48, 48, 48]
    else:
        assert len(first) == len(second) == 48
        assert set(second.generation.tolist()) == {-1, 0, 1}
    for where in (first, second):
        assert len(set(zip(where.generation.tolist(), where.index.tolist(), strict=True))) == len(where)


def test_stats_say_what_the_strategy_found(tmp_path):
    layout = run(tiny(tmp_path, "selection.strategy=threshold-decay"), until=Step(1, "select"))
    lines = [json.loads(line) for line in layout.stats(1).read_text().splitlines()]
    found = next(line for line in lines if line["phase"] == "select")
    assert found["decay"] == 0.95
    assert found["threshold"] > found["radius_median"] > 0


def test_stopped_between_any_two_checks_it_resumes_with_the_same_bytes(finished, tmp_path):
    """The stop flag rises at its k-th look, again and again, until the run is through."""
    config = tiny(tmp_path)
    looks, stops = 0, 0

    def should_stop():
        nonlocal looks
        looks += 1
        return looks % 13 == 0

    while True:
        try:
            runner.run(config, World(), should_stop)
            break
        except Interrupted:
            stops += 1
            state = json.loads((config.run_folder / "state.json").read_text())
            assert state["status"] == "interrupted"
            assert state["exit"] == 75
    assert stops > 3
    assert sealed_bytes(config.run_folder) == sealed_bytes(finished.run)


def test_killed_at_random_moments_it_ends_with_the_same_bytes(finished, tmp_path):
    """kill -9, seeded, anywhere from the first file to the end; the same command goes on."""
    path, chance = tiny_file(tmp_path), random.Random(0)
    kills = 0
    while True:
        state = sum(len(files) for _, _, files in os.walk(tmp_path / "runs"))
        if kills < 4:
            process = entroloop("run", path)
            # Wait for the run to be at work, then a little longer.
            while process.poll() is None and sum(len(files) for _, _, files in os.walk(tmp_path / "runs")) <= state:
                time.sleep(0.01)
            time.sleep(chance.random() / 2)
        else:
            assert python_command("run", path).returncode == 0
            break
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:
            break
    assert kills >= 2
    assert sealed_bytes(tmp_path / "runs" / "tiny") == sealed_bytes(finished.run)


def test_sigterm_ends_with_status_75_and_the_command_resumes(tmp_path):
    path = tiny_file(tmp_path, "train.kimg=400", "generations=1", of=VECTORS)
    process = entroloop("run", path)
    checkpoints = tmp_path / "runs" / "tiny" / "generation_0000" / "checkpoints"
    while not list(checkpoints.glob("images-*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    shown = command("status", tmp_path / "runs" / "tiny", "--json")
    train = next(p for p in json.loads(shown.stdout)["phases"] if p["phase"] == "train")
    assert train["state"] == "running"
    refused = command("run", path)
    assert refused.returncode == 2
    assert "in use by process" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "training saved at" in errors
    assert command("status", tmp_path / "runs" / "tiny").stdout.startswith("tiny: interrupted")
    last = json.loads((tmp_path / "runs/tiny/generation_0000/stats.jsonl").read_text().splitlines()[-1])
    assert (last["phase"], last["interrupted"]) == ("train", True)
    assert last["seconds"] > 0
    assert last["numerics"]["float32"] == "full precision"
    assert {"torch", "diffusers", "accelerate", "deepspeed", "processor", "threads"} <= last["numerics"].keys()
