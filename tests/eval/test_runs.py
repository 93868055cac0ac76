"""Reading runs: a sweep or a run from its sealed folders, and what is wrong in one line."""

import csv
import io
import json
import re

import pytest
import report_runs
from matplotlib.patches import Rectangle
from present import present

from entroloop.data.errors import UserError
from entroloop.eval.report import export, progress
from entroloop.eval.report import page as report
from entroloop.eval.report.runs import read_run, read_runs


def test_a_sweep_is_all_of_its_runs_and_each_run_counts_once(sweep):
    runs = read_runs([sweep, sweep / "random-0"])
    assert [run.name for run in runs] == ["greedy-0", "greedy-1", "random-0", "random-1"]
    assert runs[0].config["loop.candidates"] == 2
    assert runs[0].measured == [0, 1]
    assert runs[0].baseline is not None
    assert all(run.finished for run in runs)


def test_runs_of_equal_name_are_told_apart_by_their_folders(tmp_path):
    for sweep in ("a", "b"):
        for seed in (0, 1):
            report_runs.make_run(tmp_path / sweep / f"greedy-{seed}", "greedy", seed, generations=1, n=20)
    report_runs.make_run(tmp_path / "b" / "random-0", generations=1, n=20)
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    names = ["a/greedy-0", "a/greedy-1", "b/greedy-0", "b/greedy-1", "random-0"]
    assert [run.name for run in runs] == names
    assert {line["run"] for line in csv.DictReader(io.StringIO(export.as_csv(runs)))} == set(names)
    figure = progress.costs(runs)
    patches = [patch for patch in present(figure).axes[0].patches if isinstance(patch, Rectangle)]
    bars = [patch for patch in patches if patch.get_width() == 12.5]
    assert len({round(bar.get_y(), 3) for bar in bars}) == 5


def test_the_reason_of_a_failed_run_is_on_the_page(tmp_path):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20, planned=2)
    (run / "state.json").write_text(json.dumps({"status": "failed", "exit": 2, "reason": "disk <full>\nmore"}))
    assert "run: 1 of 2 generations; failed: disk &lt;full&gt;</li>" in report.html([read_run(run)])


@pytest.mark.parametrize("state", ["", "[]", '{"status": "finished"}', '{"status": 3}'])
def test_a_state_of_no_failure_is_no_reason(tmp_path, state):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20, planned=2)
    (run / "state.json").write_text(state)
    assert read_run(run).failed == ""


@pytest.mark.slow
def test_unsealed_rows_do_not_count_and_a_cut_line_of_statistics_is_left_out(tmp_path):
    run = report_runs.make_run(tmp_path / "run", generations=2, n=20, planned=4)
    (run / "generation_0001" / "metrics" / "manifest.json").unlink()
    with (run / "generation_0001" / "stats.jsonl").open("a") as file:
        file.write('{"phase": "train", "sec')
    found = read_run(run)
    assert len(found.rows) == 1
    assert not found.finished
    assert len(found.stats) == 11
    assert "run: 1 of 4 generations" in report.html([found])


def test_a_run_that_has_only_begun_gives_a_page(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("{format: 1, name: new, seed: 0, generations: 3}")
    assert "No generation has been measured yet." in report.html(read_runs([tmp_path / "new"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "not a run or a sweep"),
        (lambda p: (p / "config.yaml").write_text("a: [1"), "config.yaml:1: not YAML"),
        (lambda p: (p / "config.yaml").write_text("- 1"), "config.yaml: damaged"),
        (lambda p: (p / "config.yaml").write_text("generations: 1.5"), "config.yaml: damaged"),
        (lambda p: (p / "config.yaml").write_text("generations: 1"), "config.yaml: format of before 1 is not the 1"),
    ],
)
def test_what_is_not_a_run_is_refused_by_name(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_runs([tmp_path])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_row_is_named(tmp_path):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20)
    path = run / "generation_0000" / "metrics" / "metrics.jsonl"
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=re.escape(f"{path}: damaged row")):
        read_runs([run])


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("measures", "pixel", "frechet_distance"), float("nan"), "measures.pixel.frechet_distance is nan"),
        (("measures", "pixel", "frechet_distance"), "abc", "measures.pixel.frechet_distance is 'abc'"),
        (("measures", "pixel"), 3, "measures.pixel is 3"),
        (("provenance", "real"), 2, "provenance.real is 2"),
        (("generation",), "1", "generation is '1'"),
        (("baseline", "measures", "pixel", "recall"), float("inf"), "baseline.measures.pixel.recall is inf"),
        (("context", "encoders", "pixel", "top_eigenvalues"), ["x"], "context.encoders.pixel.top_eigenvalues.0 is 'x'"),
        (("context", "encoders", "pixel", "ct"), {"cells": float("nan")}, "context.encoders.pixel.ct.cells is nan"),
    ],
)
def test_a_value_that_is_no_measure_is_named_by_file_line_and_key(tmp_path, keys, value, words):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20)
    path = run / "generation_0000" / "metrics" / "metrics.jsonl"
    row = inside = json.loads(path.read_text())
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    path.write_text(json.dumps(row))
    with pytest.raises(UserError) as caught:
        read_runs([run])
    assert f"{path}: damaged row of measures in line 1 ({words}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("seed: abc", "seed is 'abc'"), ("seed: null", "seed is None")],
)
def test_a_value_of_the_configuration_that_cannot_be_is_named(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(f"format: 1\ngenerations: 3\n{text}")
    with pytest.raises(UserError) as caught:
        read_runs([tmp_path])
    assert str(caught.value).startswith(f"{tmp_path / 'config.yaml'}: {words}: Input should be ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"phase": "train", "seconds": "abc"}', "seconds is 'abc'"),
        ('{"phase": "train", "nfe": NaN}', "nfe is nan"),
        ('{"seconds": 1}', "phase is missing"),
        ("[1]", "expected keys and values"),
    ],
)
def test_seconds_that_are_no_number_are_named(tmp_path, line, words):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20)
    path = run / "generation_0000" / "stats.jsonl"
    path.write_text(f'{{"phase": "train", "loss": NaN}}\n{line}\n')
    with pytest.raises(UserError, match=re.escape(f"{path}: damaged line 2 ({words}")):
        read_runs([run])
