"""Measures of several sets, on several ranks, and in every printed form."""

import csv
import io
import json
from typing import Any

import forked
import loops
import numpy as np
import pytest
import torch
from report_runs import digits
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import load_encoder
from entroloop.eval.compare import compare, compare_sets
from entroloop.eval.measures.sets import Sets
from entroloop.eval.printed import measures_of, printed
from entroloop.eval.samples import features_of, opened_set


@pytest.fixture
def four(tmp_path, monkeypatch):
    """Two generated sets, a training set and a reference in the current folder, of different sizes."""
    monkeypatch.chdir(tmp_path)
    for name, start, count in (("a", 0, 41), ("b", 100, 47), ("training", 200, 52), ("reference", 300, 45)):
        np.save(f"{name}.npy", digits()[start : start + count])
    return [tmp_path / f"{name}.npy" for name in ("a", "b", "training", "reference")]


def _on_rank(world, paths, options):
    return compare_sets(paths[:2], *paths[2:], world=world, **options)


def _check_same(row, other):
    for part in (lambda row: row, lambda row: row["context"].get("bootstrap", {}).get("intervals", {})):
        assert list(part(row)) == list(part(other))
        for name, value in part(row).items():
            if name != "context" and value is not None:
                assert part(other)[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_rows(four):
    options: dict[str, Any] = {"flip": True, "resamples": 1, "bootstrap": 2, "entropy_size": 30}
    alone = compare_sets(four[:2], *four[2:], **options)
    for size in (2, 3):
        for rows in on_threads(size, _on_rank, four, options):
            for path, row in alone.items():
                _check_same(row, rows[path])


def test_each_of_several_sets_has_the_row_that_it_has_alone(four):
    several = loops.command("measure", "a.npy", "b.npy", "--training", "training.npy", "--json")
    assert several.returncode == 0, several.stderr
    rows = json.loads(several.stdout)["sets"]
    assert list(rows) == ["a.npy", "b.npy"]
    for name in rows:
        alone = loops.command("measure", name, "training.npy", "--json")
        assert json.loads(alone.stdout) == rows[name]


@pytest.mark.slow
def test_two_processes_print_once(four):
    arguments = ("measure", *four[:1], *four[2:], "--json")
    alone = json.loads(loops.command(*arguments).stdout)
    first, second = (rank.result() for rank in forked.ranks(2, *arguments, "--device", "cpu"))
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, ""), first.stderr + second.stderr
    _check_same(alone, json.loads(first.stdout))


@pytest.mark.slow
def test_every_form_holds_the_same_numbers(four):
    arguments = ("measure", "a.npy", "b.npy", "--training", "training.npy", "--bootstrap", 40)
    rows = json.loads(loops.command(*arguments, "--json").stdout)["sets"]
    table = list(csv.DictReader(io.StringIO(printed(rows, "csv", several=True))))
    assert len(table) == 2 * len(measures_of(rows["a.npy"]))
    for line in table:
        row = rows[line["set"]]
        ends = row["context"]["bootstrap"]["intervals"].get(line["measure"], [None, None])
        for text, value in zip((line["value"], line["low"], line["high"]), (row[line["measure"]], *ends), strict=True):
            assert text == ("" if value is None else str(value))
    markdown = printed(rows, "markdown", several=True).splitlines()
    assert markdown[0] == "| measure | a.npy | b.npy |"
    assert {line.count("|") for line in markdown} == {4}
    latex = printed(rows, "latex", several=True).splitlines()
    assert latex[0] == r"\begin{tabular}{lrr}"
    assert r"Authenticity (\%) & " in "\n".join(latex)
    assert {line.count("&") for line in latex if line.endswith("\\\\")} == {2}
    assert r"measure & a\textasciicircum{}b.npy \\" in printed({"a^b.npy": rows["a.npy"]}, "latex", several=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.npy"], "give GENERATED TRAINING [REFERENCE], or any number of generated sets and --training"),
        (["a.npy"] * 4, "give GENERATED TRAINING [REFERENCE], or any number of generated sets and --training"),
        (["a.npy", "b.npy", "--reference", "a.npy"], "--reference: goes with --training"),
        (["a.npy", "b.npy", "a.npy", "--training", "training.npy"], "a.npy: is given twice"),
        (["a.npy", "b.npy", "--format", "xml"], "--format xml: give one of text, json, csv, latex, markdown"),
        (["a.npy", "b.npy", "--json", "--format", "csv"], "--json --format csv: give one of them"),
        (["a.npy", "b.npy", "--device", "cuda:7"], "--device cuda:7: no such device here; there is cpu"),
        (["a.npy", "b.npy", "--bootstrap", "1"], "--bootstrap 1: give 2 or more"),
        (["a.npy", "b.npy", "--resamples", "1"], "--resamples 1: give 2 or more"),
        (["few.npy", "b.npy", "--bootstrap", "40"], "few.npy holds 9 samples: intervals need at least 40"),
    ],
)
def test_a_wrong_call_is_one_line(four, arguments, message):
    np.save("few.npy", digits()[:9])
    done = loops.command("measure", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_device_of_its_own_is_for_one_process(four, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.environ", {**dict.fromkeys(("RANK", "LOCAL_RANK"), "0"), "WORLD_SIZE": "2",
                                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})  # fmt: skip
    from entroloop.launcher.commands.measure import measure_command

    with pytest.raises(UserError, match=r"^--device cuda:1: with several ranks give cuda or cpu"):
        measure_command(four[:2], device="cuda:1")


def test_features_stay_in_files(tmp_path):
    """Vectors of float32 in the file that holds them, all others in a file without a name."""
    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    np.save(tmp_path / "stored.npy", rows)
    np.save(tmp_path / "doubles.npy", rows.astype(np.float64))
    encoder, mine = load_encoder("pixel", (7,)), slice(10, 40)
    for name in ("stored.npy", "doubles.npy"):
        with opened_set(tmp_path / name) as found:
            features = features_of(found, encoder, mine)
        assert isinstance(features, np.memmap)
        np.testing.assert_array_equal(features, rows[mine])
        sets = Sets(features, features)
        assert sets.generated.data_ptr() == features.ctypes.data
        assert torch.equal(sets.generated, torch.from_numpy(rows[mine]))


def test_a_row_of_compare_is_that_of_compare_sets(four):
    assert compare(four[0], four[2]) == compare_sets([four[0]], four[2])[str(four[0])]
