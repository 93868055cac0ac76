"""The report: that it is one whole page, and the command that writes it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import loops
import numpy as np
import pytest
import report_runs
import typer
import yaml
from report_runs import arm, synthetic, with_context
from typer.testing import CliRunner

from entroloop.data.errors import UserError
from entroloop.data.store.shards import Provenance
from entroloop.eval.measures.row import Context, EncoderContext
from entroloop.eval.report import export, progress, statistics, style, tables
from entroloop.eval.report import page as report
from entroloop.eval.report.arms import arms
from entroloop.eval.report.runs import Run, read_run, read_runs
from entroloop.launcher.commands.report import report_command


@pytest.fixture(scope="module")
def page(sweep):
    return sweep.parent / "report.html"


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_self_contained_and_every_picture_has_words(page):
    text = page.read_text()
    found = _Page(text)
    images = found.all("img")
    assert len(images) > 20
    for image in images:
        assert image["src"].startswith("data:image/")
        assert len(image["alt"]) > 10
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    for link in found.all("a"):
        assert any(a.get("id") == link["href"][1:] for _, a in found.tags), link
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all("aria-label" in region for _, region in found.tags if region.get("tabindex") == "0")


def test_keys_show_the_marker_and_dash_of_an_arm(sweep, page):
    found = _Page(page.read_text())
    drawn = [tag.get("d") for tag in found.all("path")]
    for look in style.styles(arms(read_runs([sweep]))).values():
        assert look.outline in drawn
    symbols = {"#" + tag["id"] for tag in found.all("symbol")}
    assert {tag["href"] for tag in found.all("use")} == symbols == {"#key-0", "#key-1"}


def test_the_page_has_the_baseline_and_every_arm(page):
    text = page.read_text()
    assert "real test vs real train" in text
    for words in (
        "Pearson r",
        "Where training images come from",
        "Samples of each generation",
        "3,000",
        "2,280",
        "2.13.0",
    ):
        assert words in text


def test_time_counts_preparation_and_interrupted_attempts_and_the_environment_says_all_it_knows(tmp_path):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20)
    (run / "real").mkdir()
    facts = {"entroloop": "1.2.3", "processor": "Some CPU"}
    (run / "real" / "stats.jsonl").write_text(
        json.dumps({"phase": "prepare", "seconds": 7.25, "numerics": facts}) + "\n"
    )
    with (run / "generation_0000" / "stats.jsonl").open("a") as file:
        file.write('{"phase": "train", "seconds": 4.5, "interrupted": true}\n')
    runs = read_runs([run])
    costs = tables.cost_table(runs)
    assert costs["phases"] == ["prepare", "train", "sample"]
    assert progress.costs(runs) is None  # one bar would fill the plot
    assert costs["lines"][0][1] == ["7.2", "17.0", "3.0", "27.2"]
    text = report.html(runs)
    assert "Interrupted attempts took 4.5 s" in text
    assert "Seconds depend on what else ran on the machine." in text
    assert "<dt>entroloop</dt><dd>1.2.3</dd>" in text
    assert "<dt>processor</dt><dd>Some CPU</dd>" in text


def test_text_from_configurations_cannot_break_out_of_the_page(tmp_path):
    run = report_runs.make_run(tmp_path / "run", strategy="</script><script>alert(1)</script>", generations=1, n=20)
    text = report.html(read_runs([run]))
    assert "<script>alert" not in text
    assert text.count("</script>") == 2


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(sweep, page):
    report.write([sweep], page.with_name("again.html"))
    assert page.with_name("again.html").read_bytes() == page.read_bytes()


@pytest.mark.slow
def test_a_moved_run_gives_the_same_page(sweep, page, tmp_path):
    shutil.copytree(sweep, tmp_path / "sweep")
    report.write([tmp_path / "sweep"], tmp_path / "moved.html")
    assert (tmp_path / "moved.html").read_bytes() == page.read_bytes()


@pytest.mark.slow
def test_ten_runs_of_ten_generations_stay_below_five_megabytes(tmp_path):
    """Colour images of 32 x 32, which compress badly, and four encoders."""
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    one = report_runs.make_run(
        tmp_path / "model", generations=1, n=24, encoders=("pixel", "classifier", "inception", "dinov2-small"),
        images=images,
    )  # fmt: skip
    (row,) = read_run(one).rows
    config = yaml.safe_load((one / "config.yaml").read_text()) | {"data": {"size": 12}}
    config["loop"]["candidates"] = 2
    for i in range(10):
        run = tmp_path / "sweep" / f"strategy{i}-0"
        run.mkdir(parents=True)
        config["name"], config["selection"]["strategy"] = run.name, f"strategy{i}"
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "generations": 10}))
        for g in range(10):
            place = run / f"generation_{g:04d}"
            shutil.copytree(one / "generation_0000" / "samples", place / "samples")
            chosen = Provenance(np.full(12, g - 1), np.arange(0, 24, 2), ("",) * 12)
            report_runs.write_set(place / "selected", images[:12], chosen)
            shutil.copy(one / "generation_0000" / "stats.jsonl", place)
            report_runs.write_row(place, row.model_copy(update={"generation": g}))
    report.write([tmp_path / "sweep"], tmp_path / "big.html")
    assert (tmp_path / "big.html").stat().st_size < 5_000_000
    text = (tmp_path / "big.html").read_text()
    assert "Selected candidates of generation 9, strategy9" in text
    for name in ("recall-pixel", "recall-classifier", "training_entropy-inception", "spectra-classifier"):
        assert f'<figure id="{name}">' in text
    assert '<figure id="recall-inception">' not in text
    assert "In dinov2-small and inception features, the other curves and the spectra are left out" in text


def test_the_numbers_of_images_stand_beside_the_real_row(sweep, page):
    runs = read_runs([sweep])
    table = tables.last_table(runs, arms(runs), "pixel")
    assert (table["base_sizes"], table["sizes"]) == ("100 against 40", "40 against 100")
    text = page.read_text()
    assert "real test vs real train<br><small>100 against 40</small>" in text
    assert "40 against 100 held-out images" in text
    assert "not a lower bound for the others" in text
    everything = text[text.index("Every generation in numbers") :]
    base = statistics.baseline_value(runs, "pixel", "frechet_distance")
    line = everything[everything.index("real test vs real train") :][:100]
    assert f"<td>{statistics.number(base)}</td>" in line


def test_what_is_behind_the_numbers_is_said_by_arm_where_arms_differ():
    def run(strategy, seed, n, distance):
        one = synthetic(strategy, seed, (1,))
        behind = {
            "digest": "ab", "k": {"recall": 3}, "memorized_calibrated_distance": distance, "top_eigenvalues": [1.0],
        }  # fmt: skip
        row = with_context(one.rows[0], n_training=n, encoders={"pixel": behind})
        return Run(Path(), one.name, one.config, (row,), None, ())

    runs = [run("random", 0, 128, 1.5), run("random", 1, 128, 2.5), run("greedy", 0, 512, 1.25)]
    assert tables.context(arms(runs)) == [
        ("all encoders", ["training images: 128 (random); 512 (greedy)"]),
        (
            "pixel",
            [
                "digest of the weights: ab",
                "nearest neighbours: recall 3",
                "distance that counts as memorized: 1.25 … 2.50",
            ],
        ),
    ]


def test_everything_behind_the_numbers_has_words():
    """No key of a row reaches the page as it is in the file."""
    shown = {*Context.model_fields, *EncoderContext.model_fields} - {"encoders", "top_eigenvalues"}
    assert all(tables._WORDS[key] for key in shown)
    row = with_context(
        synthetic().rows[0], encoders={"pixel": {"mirrored_copies_count": True, "ct": {"components": 4, "cells": 3}}}
    )
    assert tables.context([arm(Run(Path(), "a", {}, (row,), None, ()))]) == [
        ("pixel", ["mirrored copies count as copies: yes", "C_T: components 4, cells 3"])
    ]


@pytest.fixture
def command(sweep):
    app = typer.Typer()
    app.command()(report_command)

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


@pytest.mark.parametrize("form", report.FORMATS)
@pytest.mark.parametrize("out", ["{}/plain.txt/x", "{}/plain.txt/new/x", "/proc/x", "/dev/null"])
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_drawn(sweep, tmp_path, monkeypatch, form, out):
    (tmp_path / "plain.txt").write_text("kept")
    for module, name in ((report, "html"), (report, "figures"), (export, "as_csv"), (export, "as_json")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("drawn"))
    out = out.format(tmp_path)
    with pytest.raises(UserError) as caught:
        report.write([sweep], Path(out), form)
    assert str(caught.value).startswith(f"{out}: ")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "plain.txt").read_text() == "kept"


def test_a_folder_that_goes_away_meanwhile_is_no_traceback(sweep, tmp_path, monkeypatch):
    def takes_its_place(runs):
        (tmp_path / "out").rmdir()
        (tmp_path / "out").write_text("a file now")
        return ""

    monkeypatch.setattr(export, "as_csv", takes_its_place)
    with pytest.raises(UserError, match=r"out: file exists"):
        report.write([sweep], tmp_path / "out" / "x.csv", "csv")


def test_a_refused_path_is_exit_status_two(sweep, tmp_path):
    (tmp_path / "plain.txt").write_text("")
    words = ["report", sweep, "--format", "csv", "--out", tmp_path / "plain.txt" / "x.csv"]
    done = loops.command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"entroloop: {words[-1]}: {tmp_path / 'plain.txt'} is a file; give a path in a folder\n"


@pytest.mark.parametrize(
    ("given", "words"), [("nowhere/sweep", "nowhere is no folder to wait for it in"), ("file", "is a file")]
)
def test_watching_refuses_what_will_never_be_a_run(command, tmp_path, monkeypatch, given, words):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    (tmp_path / "file").write_text("")
    done = command(tmp_path / given, "--watch", "--out", tmp_path / "r.html")
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_watching_refuses_a_path_that_cannot_be_written_before_the_first_run_is_there(command, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    (tmp_path / "plain.txt").write_text("")
    done = command(tmp_path / "later", "--watch", "--out", tmp_path / "plain.txt" / "r.html")
    assert isinstance(done.exception, UserError)


@pytest.mark.parametrize(("beating", "said"), [(True, 0), (False, 1)])
def test_watching_says_once_when_no_process_shows_signs_of_life(command, tmp_path, monkeypatch, beating, said):
    """A killed process leaves its lease, and a state.json of no attempt; a live one rewrites the lease."""
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20, planned=2)
    lease = run / "generation_0000" / ".lease-train-0"
    lease.write_text('{"counter": 0}')
    looks = []

    def go_on(seconds):
        looks.append(seconds)
        if beating:
            lease.write_text(json.dumps({"counter": len(looks)}))
        if len(looks) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", go_on)
    done = command(run, "--watch", "--format", "csv", "--out", tmp_path / "r.csv")
    assert len(looks) == 12
    assert done.output.count("no sign of life for 60 s, still waiting for run; Ctrl-C ends this") == said
