"""Sweeps: names, leaders, linked work, refusals, and the report at the end."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from loops import VECTORS, command, sealed_bytes, tiny_file
from present import present

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.launcher import __main__ as launcher
from entroloop.launcher import sweep
from entroloop.launcher.run import lease
from entroloop.launcher.status import inspect

pytestmark = pytest.mark.slow

GRID = {"selection.strategy": ["random", "greedy"], "seed": [0, 1]}


def grid_file(folder, grid=GRID, **values):
    path = folder / "grid.yaml"
    path.write_text(
        yaml.safe_dump({**VECTORS, "folder": str(folder / "runs"), "sweep": {"grid": grid}, **values}, sort_keys=False)
    )
    return path


def test_arms_are_named_by_what_differs_and_led_by_the_one_they_share_most_with(tmp_path):
    _, arms = sweep.arms_of(grid_file(tmp_path), [])
    assert [arm.config.name for arm in arms] == ["random-seed0", "random-seed1", "greedy-seed0", "greedy-seed1"]
    assert [arms.index(arm.leader) if arm.leader else None for arm in arms] == [None, 0, 0, 1]
    assert [len(arm.shared) for arm in arms] == [0, 1, 6, 6]


def test_an_empty_mapping_is_the_configuration_as_it_stands(tmp_path):
    _, arms = sweep.arms_of(grid_file(tmp_path, {"arm": [{}, {"seed": 1}]}), [])
    assert [(arm.config.name, arm.config.seed) for arm in arms] == [("base", 0), ("seed1", 1)]


def test_settings_that_go_together_are_one_value_of_the_grid(tmp_path):
    options = {"selection.options.threshold": 60, "selection.options.decay": 0.8}
    pairs = [
        {"selection.strategy": "random", "loop.draw": "stratified"},
        {"selection.strategy": "threshold-decay", **options},
    ]
    _, arms = sweep.arms_of(grid_file(tmp_path, {"seed": [0, 1], "arm": pairs}), [])
    assert [arm.config.name for arm in arms] == [
        "seed0-random-drawstratified",
        "seed0-threshold-decay-threshold60-decay0.8",
        "seed1-random-drawstratified",
        "seed1-threshold-decay-threshold60-decay0.8",
    ]
    assert [arm.config.loop.draw for arm in arms[:2]] == ["stratified", "uniform"]
    assert [arm.config.selection.options for arm in arms[:2]] == [{}, {"threshold": 60, "decay": 0.8}]


def test_a_key_of_the_grid_can_be_overridden_though_it_has_dots(tmp_path):
    path = grid_file(tmp_path, {"selection.strategy": ["random", "greedy"], "seed": [0, 1]})
    _, arms = sweep.arms_of(path, ["sweep.grid.selection.strategy=[threshold-decay]", "sweep.grid.seed=[7]"])
    assert [(arm.config.name, arm.config.seed) for arm in arms] == [("threshold-decay-seed7", 7)]


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ({"arm": [{"selection.stratgy": "greedy"}]}, "stratgy: unknown key; did you mean selection.strategy?"),
        ({}, "sweep.grid"),
        ({"seed": []}, "sweep.grid"),
        ({"sed": [1]}, "sed: unknown key; did you mean seed?"),
        ({"seed": [1, 1]}, "same name"),
    ],
)
def test_bad_grids_are_refused(tmp_path, grid, line):
    with pytest.raises(UserError) as caught:
        sweep.arms_of(grid_file(tmp_path, grid), [])
    assert line in str(caught.value)


@pytest.mark.usefixtures("forked_arms")
def test_a_sweep_shares_work_gives_the_bytes_of_single_runs_and_reports(tmp_path):
    path = grid_file(tmp_path, {"selection.strategy": ["random", "greedy"]})
    sweep.run(path, [], lambda: False)
    runs = tmp_path / "runs" / "tiny"
    weights = Layout(runs / "random").of(Step(0, "train")) / "manifest.json"
    twin = Layout(runs / "greedy").of(Step(0, "train")) / "manifest.json"
    assert os.path.samefile(weights, twin)
    assert (runs / "report.html").stat().st_size > 10_000
    alone = command("run", path, "selection.strategy=greedy", "name=alone")
    assert alone.returncode == 0, alone.stderr
    assert sealed_bytes(tmp_path / "runs" / "alone") == sealed_bytes(runs / "greedy")
    status = command("status", runs)
    assert "greedy: finished" in status.stdout
    before = sealed_bytes(runs)
    sweep.run(path, [], lambda: False)
    assert sealed_bytes(runs) == before


@pytest.mark.parametrize(("visible", "jobs", "expected"), [(None, 0, "01"), ("4,7", 0, "47"), ("4,7", 3, "474")])
def test_every_run_that_is_at_work_has_a_card_of_its_own(tmp_path, monkeypatch, visible, jobs, expected):
    """On a pretended number of GPUs. The runs themselves wait until the sweep is stopped."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = []

    def start(command, *, env, **options):
        given.append(env["CUDA_VISIBLE_DEVICES"])
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=env, **options)

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
    looks = iter([False, False, True])
    with pytest.raises(Interrupted):
        sweep.run(grid_file(tmp_path, {"threads": [1, 2, 3, 4]}), [f"sweep.jobs={jobs}"], lambda: next(looks))
    assert given == list(expected)


@pytest.mark.usefixtures("forked_arms")
def test_a_failing_arm_is_named_with_its_log(tmp_path, capsys):
    path = grid_file(tmp_path, {"data.size": [48, 5000]}, generations=1)
    with pytest.raises(SystemExit) as ended:
        launcher.main(["sweep", str(path)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "1 of 2 runs did not finish" in said
    assert "log.txt" in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end processes with their parent")
def test_the_runs_of_a_killed_sweep_end_with_it_and_the_same_command_goes_on(tmp_path):
    small = {
        "generations": 1,
        "network": {"kind": "mlp"},
        "data": {**VECTORS["data"], "source": "mixture", "limit": 200},
    }
    path = grid_file(tmp_path, {"train.kimg": [400]}, **small)  # minutes, if it went on
    layout = Layout(tmp_path / "runs" / "tiny" / "kimg400")
    swept = multiprocessing.get_context("fork").Process(target=sweep.run, args=(path, [], lambda: False))
    swept.start()
    held = until(lambda: lease.read(layout.lease(Step(0, "train"))))
    os.kill(present(swept.pid), signal.SIGKILL)
    swept.join()
    until(lambda: not is_running(held["pid"]), 5)
    with pytest.raises(Interrupted):  # as soon as the new run of the arm trains
        sweep.run(path, [], lambda: (lease.read(layout.lease(Step(0, "train"))) or held)["token"] != held["token"])
    assert json.loads((layout.run / "state.json").read_text())["status"] == "interrupted"
    assert "is in use" not in (layout.run / "log.txt").read_text()


def is_running(pid):
    """Not so of a zombie, which waits for whoever has adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, seconds=120):
    """Waits for a condition and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_an_arm_that_waits_for_its_turn_has_not_begun(tmp_path):
    path = tiny_file(tmp_path)
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "config.yaml").write_bytes(path.read_bytes())
    assert inspect(run)["status"] == "not begun"
