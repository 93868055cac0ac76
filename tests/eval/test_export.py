"""The report as CSV and JSON."""

import csv
import io
import json

import report_runs
from report_runs import synthetic

from entroloop.eval.report import export
from entroloop.eval.report import page as report
from entroloop.eval.report.runs import read_runs


def test_csv_has_a_line_a_value(sweep):
    report.write([sweep], sweep.parent / "r.csv", "csv")
    lines = list(csv.DictReader(io.StringIO((sweep.parent / "r.csv").read_text())))
    run = read_runs([sweep / "greedy-1"])[0]
    match = [x for x in lines if x["run"] == "greedy-1" and x["generation"] == "1" and x["measure"] == "recall"]
    assert len(match) == 1
    assert float(match[0]["value"]) == run.value(1, "pixel", "recall")
    assert {x["kind"] for x in lines} == {"generated", "baseline"}
    behind = ("n_generated", "n_training", "n_reference", "entropy_n", "measure_seed", "k")
    assert [match[0][key] for key in behind] == ["40", "40", str(report_runs.HELDOUT), "40", "0", "3"]
    assert match[0]["encoder_digest"] == "0" * 64
    assert {x["k"] for x in lines if x["measure"] == "frechet_distance"} == {""}


def test_csv_has_every_origin_of_a_training_set_once(sweep):
    lines = list(csv.DictReader(io.StringIO(export.as_csv(read_runs([sweep / "greedy-1"])))))
    shares = [x for x in lines if x["measure"].startswith("provenance.") and x["kind"] == "generated"]
    found = [(x["generation"], x["measure"], x["value"], x["encoder"], x["n_training"]) for x in shares]
    assert found == [("0", "provenance.real", "1.0", "", "40"), ("1", "provenance.0", "1.0", "", "40")]


def test_json_holds_the_rows(sweep):
    report.write([sweep], sweep.parent / "r.json", "json")
    summary = json.loads((sweep.parent / "r.json").read_text())
    assert len(summary["runs"]) == 4
    assert summary["runs"][0]["rows"][1]["measures"]["pixel"]["frechet_distance"] > 0
    assert -1 <= summary["correlation"]["pixel"]["r"] <= 1
    arm_of = {run["name"]: run["arm"] for run in summary["runs"]}
    assert arm_of == {"greedy-0": "greedy", "greedy-1": "greedy", "random-0": "random", "random-1": "random"}


def test_json_takes_a_setting_that_is_infinite():
    run = synthetic(**{"sample.s_max": float("inf")})
    assert json.loads(export.as_json([run]))["runs"][0]["config"]["sample.s_max"] == "Infinity"
