"""Trackers: the values that reach TensorBoard, and that a tracker cannot end a run."""

import json

import pytest
from loops import command, tiny_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout
from entroloop.trainer import tracking
from entroloop.trainer.engines import trackers
from entroloop.trainer.tracking import Tracking, TrackingConfig


def test_numbers_are_flattened_and_all_else_left_out():
    values = {"a": 1, "b": {"c": 2.5, "d": "text", "e": None}, "f": float("nan"), "g": True, "h": [1]}
    assert tracking.flat(values, "train") == {"train/a": 1.0, "train/b/c": 2.5}


def test_tensorboard_shows_training_and_measures_also_on_resume(tmp_path):
    path = tiny_file(tmp_path)
    assert command("run", path, "generations=1").returncode == 0
    done = command("run", path, "tracking.trackers=[tensorboard]", "tracking.project=mine")
    assert done.returncode == 0, done.stderr
    layout = Layout(tmp_path / "runs" / "tiny")
    events = EventAccumulator(str(layout.run / "tracking" / "mine")).Reload()
    lines = [json.loads(line) for line in layout.stats(1).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    shown = events.Scalars("train/loss")
    assert [event.value for event in shown] == pytest.approx(losses)
    assert [event.step for event in shown] == [320 + 80 * i for i in (1, 2, 3, 4)]
    row = json.loads((layout.generation(1) / "metrics" / "metrics.jsonl").read_text())
    measure = row["measures"]["pixel"]["frechet_distance"]
    assert events.Scalars("metrics/measures/pixel/frechet_distance")[0].value == pytest.approx(measure)


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, caplog, monkeypatch):
    seen = []

    def start(name, project, folder, options):
        if name == "wandb":
            raise ConnectionError("no network")
        assert options == {"flush_secs": 3}
        return lambda numbers, step: seen.append((numbers, step)), lambda: seen.append("finished")

    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(trackers, "start_tracker", start)
    options = {"tensorboard": {"flush_secs": 3}}
    watch = Tracking(TrackingConfig(trackers=("wandb", "tensorboard"), options=options), tmp_path)
    watch.log({"x": 1}, "train", 5)
    watch.log({"x": 2}, "train", 6)
    watch.finish()
    assert seen == [({"train/x": 1.0}, 5), ({"train/x": 2.0}, 6), "finished"]
    assert caplog.text.count("tracker wandb is left out from here on: ConnectionError: no network") == 1


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracking\.trackers: wandb is not installed: pip install wandb"):
        tracking.check_installed(TrackingConfig(trackers=("wandb",)))
