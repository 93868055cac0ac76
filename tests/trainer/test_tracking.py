"""Trackers: the values that reach TensorBoard, and that a tracker cannot end a run."""

import importlib.util
import json
import struct
from typing import Any

import pytest
from loops import VECTORS, command, tiny_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout
from entroloop.trainer import tracking
from entroloop.trainer.engines import trackers
from entroloop.trainer.tracking import Tracking, TrackingConfig

pytestmark = pytest.mark.slow


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


def losses(run):
    """Losses of generation 1 by images seen over all generations."""
    lines = [json.loads(line) for line in Layout(run).stats(1).read_text().splitlines()]
    return dict(
        zip([320 + 80 * i for i in (1, 2, 3, 4)], [line["loss"] for line in lines if "loss" in line], strict=True)
    )


def resumed_with(tmp_path, *overrides, **environment):
    """The folder of a run whose generation 1 a tracker has watched."""
    path = tiny_file(tmp_path, of=VECTORS)
    assert command("run", path, "generations=1").returncode == 0
    done = command("run", path, "tracking.project=mine", *overrides, **environment)
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout + done.stderr
    return tmp_path / "runs" / "tiny"


def wandb_records(path):
    """The records in wandb's file of an offline run: a log in LevelDB's form after a header of 7 bytes."""
    records: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    raw, at, whole = path.read_bytes(), 7, b""
    while at < len(raw):
        left = 2**15 - at % 2**15
        if left < 7:  # a record does not begin so near to the end of a block
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, at)
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield records.Record.FromString(whole)
            whole = b""


def test_wandb_offline_writes_the_losses_into_the_run(tmp_path):
    pytest.importorskip("wandb")
    run = resumed_with(tmp_path, "tracking.trackers=[wandb]", "tracking.options.wandb.mode=offline")
    (file,) = (run / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    records = list(wandb_records(file))
    assert [record.run.project for record in records if record.HasField("run")] == ["mine"]
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert {row["_step"]: row["train/loss"] for row in rows if "train/loss" in row} == pytest.approx(losses(run))
    assert [row["_step"] for row in rows if "metrics/measures/pixel/frechet_distance" in row] == [640]


def test_mlflow_writes_the_losses_into_files_of_the_run(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run = resumed_with(tmp_path, "tracking.trackers=[mlflow]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.MlflowClient((run / "tracking" / "mlruns").as_uri())
        (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        history = client.get_metric_history(found.info.run_id, "train/loss")
        assert {metric.step: metric.value for metric in history} == pytest.approx(losses(run))
        assert found.data.metrics["metrics/measures/pixel/frechet_distance"] >= 0
        assert "train/loss_by_sigma/sigma below 0.8" in found.data.metrics
    assert found.info.status == "FINISHED"


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path, caplog, monkeypatch):
    seen: list[Any] = []

    def start(name, project, folder, options):
        if name == "wandb":
            raise ConnectionError("no network")
        assert options == {"flush_secs": 3}
        return lambda numbers, step: seen.append((numbers, step)), lambda: seen.append("finished")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(trackers, "start_tracker", start)
    options = {"tensorboard": {"flush_secs": 3}}
    watch = Tracking(TrackingConfig(trackers=("wandb", "tensorboard"), options=options), tmp_path)
    watch.log({"x": 1}, "train", 5)
    watch.log({"x": 2}, "train", 6)
    watch.finish()
    assert seen == [({"train/x": 1.0}, 5), ({"train/x": 2.0}, 6), "finished"]
    assert caplog.text.count("tracker wandb is left out from here on: ConnectionError: no network") == 1


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracking\.trackers: wandb is not installed: pip install wandb"):
        tracking.check_installed(TrackingConfig(trackers=("wandb",)))
