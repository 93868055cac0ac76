"""The report: its statements about runs, that it is one whole page, and that a browser shows it."""

import csv
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import loops
import numpy as np
import pytest
import report_runs
import typer
import yaml
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from present import present
from typer.testing import CliRunner

from entroloop.data.errors import UserError
from entroloop.data.store.shards import REAL, Provenance
from entroloop.eval.measures.row import Context, EncoderContext, Row
from entroloop.eval.report import export, headline, pictures, plots, progress, statistics, style, tables
from entroloop.eval.report import page as report
from entroloop.eval.report.arms import Arm, arms, baseline_arm, comparable, differences
from entroloop.eval.report.runs import Run, flat, read_run, read_runs
from entroloop.launcher.commands.report import report_command


@pytest.fixture(scope="module")
def sweep(once):
    return once("report", report_runs.make_page) / "sweep"


@pytest.fixture(scope="module")
def page(sweep):
    return sweep.parent / "report.html"


def synthetic(strategy="random", seed=0, distances=(1.0, 2.0, 4.0), name=None, **config):
    """A Run without a folder."""
    rows = tuple(
        Row(
            generation=g,
            measures={"pixel": {"frechet_distance": d, "generalization_score": 8 / d, "training_entropy": -d}},
            provenance={"real": 1.0} if g == 0 else {str(g - 1): 1.0},
        )
        for g, d in enumerate(distances)
    )
    settings = {"seed": seed, "generations": len(distances), "selection.strategy": strategy, **config}
    return Run(Path(), name or f"{strategy}-{seed}", settings, rows, None, ())


def with_context(row, **context):
    return Row.model_validate({**row.as_dict(), "context": context})


# --- reading -------------------------------------------------------------------------------------------------------


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


def test_origins_are_stacked_areas_level_over_a_generation(tmp_path):
    report_runs.make_run(tmp_path / "run", generations=3, n=20)
    (run,) = read_runs([tmp_path / "run"])
    for row, shares in zip(run.rows, [{"real": 1.0}, {"real": 0.25, "0": 0.75}, {"0": 0.5, "1": 0.5}], strict=True):
        row.provenance.clear()
        row.provenance.update(shares)
    figure = plots.provenance_areas(arms([run]))
    heights = (np.arange(20) + 0.5) / 20
    for at, expected in [(-0.4, [1, 0, 0]), (0.4, [1, 0, 0]), (0.6, [0.25, 0.75, 0]), (2.4, [0, 0.5, 0.5])]:
        areas = [area.get_paths()[0] for area in present(figure).axes[0].collections]
        seen = [np.mean([area.contains_point((at, y)) for y in heights]) for area in areas]
        assert seen == pytest.approx(expected), at
    keys = [text.get_text() for text in present(figure).legends[0].get_texts()]
    assert keys == ["generation 1", "generation 0", "real"]


def test_training_sets_of_one_origin_are_a_sentence_and_no_plot(tmp_path):
    run = synthetic(distances=(1, 2, 3))
    assert plots.provenance_areas(arms([run])) is None
    assert "that the generation before has made" in tables.single_origin(arms([run]))
    for shares, words in (({"0": 0.5, "1": 0.5}, ""), ({"real": 1.0}, "(generation 0: real, generation 1: real)")):
        last = run.rows[1].model_copy(update={"provenance": shares})
        found = tables.single_origin(arms([dataclasses.replace(run, rows=(run.rows[0], last))]))
        assert words in found
        assert bool(words) == bool(found)


def test_the_reason_of_a_failed_run_is_on_the_page(tmp_path):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20, planned=2)
    (run / "state.json").write_text(json.dumps({"status": "failed", "exit": 2, "reason": "disk <full>\nmore"}))
    assert "run: 1 of 2 generations; failed: disk &lt;full&gt;</li>" in report.html([read_run(run)])


@pytest.mark.parametrize("state", ["", "[]", '{"status": "finished"}', '{"status": 3}'])
def test_a_state_of_no_failure_is_no_reason(tmp_path, state):
    run = report_runs.make_run(tmp_path / "run", generations=1, n=20, planned=2)
    (run / "state.json").write_text(state)
    assert read_run(run).failed == ""


def test_loss_curves_keep_the_last_line_of_repeated_steps_and_stay_short():
    lines = [(1, 5.0), (2, 4.0), (3, float("nan")), (2, 3.0)]
    stats = [{"phase": "train", "generation": "generation_0000", "kimg": k, "loss": v} for k, v in lines]
    stats += [{"phase": "train", "generation": "generation_0001", "kimg": k, "loss": 2.0} for k in range(1, 1001)]
    found = progress.loss_curves(Run(Path(), "a", {}, (), None, tuple(stats)))
    assert found[0] == ([1, 2], [5, 3])
    assert len(found[1][0]) == len(found[1][1]) == progress.POINTS
    assert set(found[1][1]) == {2.0}


def test_radii_are_means_over_the_runs_of_an_arm(sweep):
    groups = arms(read_runs([sweep]))
    lines = present(progress.radii(groups)).axes[0].lines
    assert {line.get_label(): list(np.asarray(line.get_ydata())) for line in lines} == {
        "random": [101.5],
        "greedy": [101.5],
    }


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


# --- arms ----------------------------------------------------------------------------------------------------------


def test_arms_are_runs_that_differ_in_the_seed_only():
    runs = [synthetic("greedy", s, **{"loop.paradigm": p}) for p in ("replace", "fresh") for s in (1, 0)]
    groups = arms(runs)
    assert [arm.label for arm in groups] == ["greedy (replace)", "greedy (fresh)"]
    assert [[run.seed for run in arm.runs] for arm in groups] == [[0, 1], [0, 1]]


def test_a_key_that_is_only_set_in_some_runs_parts_arms():
    plain, option = synthetic("greedy", 0), synthetic("greedy", 1, **{"selection.options.parts": 4})
    assert [arm.label for arm in arms([plain, option])] == ["greedy (parts=none)", "greedy (parts=4)"]


def test_labels_name_no_more_than_is_needed():
    """Candidates follow from the strategy here; tau tells two arms apart."""
    runs = [
        synthetic("greedy", **{"loop.candidates": 2, "selection.tau": None}),
        synthetic("random", **{"loop.candidates": 1, "selection.tau": None}),
        synthetic("threshold-decay", **{"loop.candidates": 2, "selection.tau": 3}),
        synthetic("threshold-decay", **{"loop.candidates": 2, "selection.tau": 5}),
    ]
    labels = [arm.label for arm in arms(runs)]
    assert labels == ["random (tau=none)", "greedy (tau=none)", "threshold-decay (tau=3)", "threshold-decay (tau=5)"]
    assert [arm.label for arm in arms(runs[:3])] == ["random", "greedy", "threshold-decay"]
    assert list(differences(runs)) == ["loop.candidates", "selection.strategy", "selection.tau"]


def test_what_most_arms_have_goes_without_saying_where_labels_would_be_long():
    usual = {"loop.paradigm": "replace", "train.steps": 9, "selection.metric": "euclidean"}
    others: list[dict[str, Any]] = [
        {"loop.paradigm": "fresh"},
        {"train.steps": 5},
        {"selection.metric": "cosine", "train.steps": 5},
    ]
    runs = [synthetic("random", **usual), *(synthetic("greedy", **{**usual, **other}) for other in [{}, *others])]
    labels = [arm.label for arm in arms(runs)]
    assert labels == ["random", "greedy", "greedy (fresh)", "greedy (steps=5)", "greedy (metric=cosine, steps=5)"]


def test_flat_names_nested_keys():
    assert flat({"a": 1, "b": {"c": {"d": [2]}}}) == {"a": 1, "b.c.d": [2]}


def test_colours_stay_with_strategies_and_no_two_arms_look_alike():
    runs = [synthetic(s, **{"loop.paradigm": p}) for s in ("random", "greedy", "mine") for p in ("replace", "fresh")]
    looks = style.styles(arms(runs))
    assert looks["greedy (replace)"].colour == style.COLOURS["greedy"]
    assert looks["greedy (replace)"].colour == looks["greedy (fresh)"].colour
    assert len({(look.colour, look.dash) for look in looks.values()}) == 6
    assert len({look.marker for look in looks.values()}) == 6


def test_the_page_draws_arms_of_one_colour_with_different_markers_and_dashes():
    groups = arms([synthetic(**{"loop.paradigm": p}) for p in ("replace", "fresh")] + [synthetic("greedy")])
    one, other = (arm for arm in tables.explorer([], groups, ["pixel"])["arms"] if arm["label"].startswith("random"))
    assert one["colour"] == other["colour"]
    assert one["dash"] != other["dash"]
    assert one["marker"] != other["marker"]
    square = style.Style("#000", "s", (0, (5, 2)))
    assert square.dasharray == "10 4"
    assert square.outline == "M-4.50 4.50L4.50 4.50L4.50 -4.50L-4.50 -4.50Z"
    assert style.Style("#000", "o", "-").dasharray == "none"


def test_shrinking_a_plot_leaves_its_words_and_draws_to_a_hundredth():
    figure = plots.measure_curves([arm(synthetic(distances=(0.0005, 0.0011)))], [], "pixel", "frechet_distance")
    text = style.svg(present(figure)).decode()
    assert ">0.0006</text>" in text
    assert not re.search(r'd="[^"]*\d\.\d{3}', text)


# --- statistics ----------------------------------------------------------------------------------------------------


def arm(*runs):
    return Arm(runs[0].strategy, runs[0].strategy, "", runs)


def test_the_band_is_a_student_interval_from_three_seeds_on():
    three = arm(*(synthetic(seed=s, distances=(1 + s,)) for s in range(3)))
    line = statistics.curve(three, "pixel", "frechet_distance")
    assert line.mean == [2.0]
    assert line.high[0] - 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    two = statistics.curve(arm(*three.runs[:2]), "pixel", "frechet_distance")
    assert (two.low, two.high, two.n) == ([1.0], [2.0], [2])


@pytest.mark.parametrize(("seeds", "drawn"), [(1, []), (2, []), (3, ["bars"]), (4, ["bars"]), (5, ["band"])])
def test_intervals_are_bars_from_three_seeds_on_and_bands_from_five(seeds, drawn):
    runs = [synthetic(seed=s, distances=(1 + s, 2 + s)) for s in range(seeds)]
    axes = present(plots.measure_curves(arms(runs), runs, "pixel", "frechet_distance")).axes[0]
    assert ["bars" if isinstance(one, LineCollection) else "band" for one in axes.collections] == drawn
    assert len(axes.lines) == 1 + seeds * (seeds > 1)
    assert axes.get_ylim() == pytest.approx((1 - 0.08 * seeds, 1 + seeds * 1.08))


def test_bars_are_the_intervals_and_those_of_two_arms_stand_side_by_side():
    runs = [synthetic(strategy, s, (1 + s, 2 + s)) for strategy in ("random", "greedy") for s in range(3)]
    axes = present(plots.measure_curves(arms(runs), runs, "pixel", "frechet_distance")).axes[0]
    half = 4.303 / 3**0.5
    for bars, at in zip(axes.collections, (-0.03, 0.03), strict=True):
        assert isinstance(bars, LineCollection)
        found = np.array(bars.get_segments())
        expected = [[(g + at, g + 2 - half), (g + at, g + 2 + half)] for g in (0, 1)]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("seeds", "cell"), [(1, "1.00"), (2, "1.50"), (3, "2.00 [\N{MINUS SIGN}0.484,\N{NO-BREAK SPACE}4.48]")]
)
def test_tables_give_the_mean_and_from_three_seeds_on_its_interval(seeds, cell):
    runs = [synthetic(seed=s, distances=(1 + s,)) for s in range(seeds)]
    (line,) = (line for line in tables.last_table(runs, arms(runs), "pixel")["lines"] if line[0] == "frechet_distance")
    assert line[2] == [cell]
    everything = tables.full_table(runs, arms(runs), "pixel", ["frechet_distance"])
    assert everything["lines"][0][2][0] == cell


def correlation(clusters):
    found = statistics.correlation(clusters)
    assert found is not None
    return found


def test_correlation_agrees_with_numpy_and_its_interval_holds_the_runs_together():
    rng = np.random.default_rng(0)
    clusters = [[(x, x + rng.normal()) for x in rng.normal(size=5)] for _ in range(8)]
    points = np.concatenate([np.array(c) for c in clusters])
    found = correlation(clusters)
    assert found.r == pytest.approx(np.corrcoef(points.T)[0, 1])
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.r < found.high
    assert (found.n, found.runs) == (40, 8)
    # Five copies of every point in its own run add no information: the interval stays as it was.
    copies = correlation([c * 5 for c in clusters])
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high))


def test_no_correlation_without_points_or_spread():
    assert statistics.correlation([[(1, 2), (2, 3)]]) is None
    assert statistics.correlation([[(1, 2)] * 5]) is None
    assert correlation([[(1, 1), (2, 2), (3, 4)]]).low is None


def test_differences_are_paired_by_seed():
    ours = arm(*(synthetic("greedy", s, (1, 10 + s)) for s in (0, 1, 2)))
    theirs = arm(*(synthetic("random", s, (1, 15 + s)) for s in (1, 2, 3)))
    assert statistics.paired(ours, theirs, 1, "pixel", "frechet_distance") == [-5, -5]


def test_the_headline_says_what_the_numbers_say():
    groups = arms([synthetic("random", distances=(1, 2, 4)), synthetic("greedy", distances=(1, 1.5, 3))])
    first, second, *_ = headline.headline(groups, "pixel", "pixel")
    assert "Fréchet distance to held-out images grows 4.00-fold (1.00 → 4.00)" in first
    assert "generalization score falls by 75% (8.00 → 2.00)" in first
    assert "4.00 with random; 3.00 with greedy (\N{MINUS SIGN}25%)." in second
    assert "One seed" in headline.certainty(groups, "pixel")[0]


def test_the_headline_turns_with_the_data():
    groups = arms([synthetic("random", distances=(4, 2)), synthetic("greedy", distances=(4, 4.01))])
    first, second, *_ = headline.headline(groups, "pixel", "pixel")
    assert "falls by 50% (4.00 → 2.00)" in first
    assert "with greedy (+100%)" in second
    assert "stays about the same" in headline.headline(groups[1:], "pixel", "pixel")[0]


@pytest.mark.parametrize(
    ("gaps", "strategies", "said"),
    [
        ((0.08,), ("random", "greedy"), ("generation 0 is +0.0800 in pixel", "more spread than", "prefers defects")),
        ((0.08, -0.1), ("random", "greedy"), ("generation 1 with random is", "less spread than", "precision")),
        ((-0.5, 0.1), ("greedy",), ("generation 0 is", "less spread than", "(greedy, threshold-decay")),
    ],
)
def test_one_sentence_says_what_the_spread_gap_means_for_selection(gaps, strategies, said):
    runs = [synthetic(strategy, distances=[1.0] * len(gaps)) for strategy in strategies]
    for run in runs:
        for row, gap in zip(run.rows, gaps, strict=True):
            row.measures["pixel"]["spread_gap"] = gap
    *_, sentence = headline.headline(arms(runs), "pixel", "pixel")
    assert [word for word in said if word not in sentence] == []


def test_the_arm_that_trains_on_real_images_alone_has_its_name_and_is_compared_with_random():
    runs = [synthetic("random", **{"loop.keep_real": 0.0}), synthetic("greedy", **{"loop.keep_real": 0.0})]
    runs.append(synthetic("random", name="real", **{"loop.keep_real": 1.0}))
    groups = arms(runs)
    assert [arm.label for arm in groups] == ["random", "greedy", "real-only"]
    assert baseline_arm(groups[2], groups) is groups[0]
    assert headline.selecting_encoders(runs) == {}


def test_arms_are_compared_where_all_have_got_to():
    groups = arms([synthetic("random", distances=(1, 2, 4)), synthetic("greedy", distances=(1, 3))])
    assert comparable(groups).generation == 1
    assert "At generation 1" in headline.headline(groups, "pixel", "pixel")[1]


def test_only_seeds_that_every_arm_has_are_compared():
    """Two seeds of greedy stopped a generation earlier, where random's are worse: three against one would be 10 : 2."""
    random = [synthetic("random", s, (1, 1, 2 + 12 * (s > 0))) for s in range(3)]
    greedy = [synthetic("greedy", 0, (1, 1, 2)), synthetic("greedy", 1, (1, 1)), synthetic("greedy", 2, (1, 1))]
    groups = arms(random + greedy)
    even = comparable(groups)
    assert (even.generation, even.seeds) == (2, (0,))
    assert [run.name for run in even.left_out] == ["random-1", "random-2", "greedy-1", "greedy-2"]
    assert "2.00 with random; 2.00 with greedy (+0%)." in headline.headline(groups, "pixel", "pixel")[1]
    first, *rest = headline.certainty(groups, "pixel")
    assert "One seed (0)" in first
    assert "every mean, because not every arm has their seed at generation 2: random-1, random-2" in rest[-1]
    table = tables.last_table(random + greedy, groups, "pixel")
    assert [line.cells for line in table["lines"] if line.measure == "frechet_distance"] == [["2.00", "2.00"]]
    every = tables.full_table([], groups, "pixel", ["frechet_distance"])["lines"]
    assert [(label, g, len(cells)) for label, g, cells in every[-1:]] == [("greedy", 2, 1)]
    assert all("[" not in cell for _, _, cells in every for cell in cells)
    figure = plots.measure_curves(groups, [], "pixel", "frechet_distance")
    lines = [line for line in present(figure).axes[0].lines if not str(line.get_label()).startswith("_")]
    ends = {line.get_label(): np.asarray(line.get_ydata())[-1] for line in lines}
    assert ends == {"random": 2, "greedy": 2}


def test_arms_without_a_common_seed_say_so():
    groups = arms([synthetic("random", s, (1, 2)) for s in (1, 2)] + [synthetic("greedy", 3, (1, 3))])
    assert comparable(groups).seeds == ()
    assert "no seed in common" in headline.certainty(groups, "pixel")[0]


def test_a_curve_ends_where_its_seeds_part():
    line = statistics.curve(
        arm(synthetic(seed=0, distances=(1, 2, 9)), synthetic(seed=1, distances=(3, 4))), "pixel", "frechet_distance"
    )
    assert line.mean == [2, 3]


def test_a_difference_whose_interval_contains_zero_is_no_finding():
    def said(changes):
        runs = [synthetic("random", s, (1, 10)) for s in range(3)]
        runs += [synthetic("greedy", s, (1, 10 + change)) for s, change in enumerate(changes)]
        return headline.headline(arms(runs), "pixel", "pixel")[1].replace("\N{MINUS SIGN}", "-")

    # mean 5 / 3, standard error 7 / 3, t(2) = 4.303
    assert "with greedy (+17%, 95% interval -84% to +117%, which contains 0: no clear difference)" in said((1, -2, 6))
    assert "with greedy (-20%, 95% interval -22% to -18%)." in said((-2, -1.9, -2.1))


def test_many_arms_are_not_all_named():
    runs = [synthetic("random", distances=(1, 10))]
    runs += [synthetic(f"strategy{i}", distances=(1, 5 + i)) for i in range(13)]
    second = headline.headline(arms(runs), "pixel", "pixel")[1]
    assert "among the 13 others, the lowest and the highest are 5.00 with strategy0" in second
    assert "17.0 with strategy12" in second
    assert "strategy6" not in second
    changes = tables.changes(arms(runs), "pixel")
    assert len(changes) == 13
    assert changes[7] == ("strategy7", "random", "+20%")
    assert tables.changes(arms(runs[:4]), "pixel") == []


def test_an_arm_that_was_not_measured_in_the_same_features_is_not_in_the_sentence():
    runs = [synthetic(name) for name in ("random", "greedy", "herding")]
    elsewhere = [{**row.as_dict(), "measures": {"classifier": row.measures["pixel"]}} for row in runs[2].rows]
    runs[2] = dataclasses.replace(runs[2], rows=tuple(Row.model_validate(row) for row in elsewhere))
    (said,) = [line for line in headline.headline(arms(runs), "pixel", "pixel") if line.startswith("At generation 2")]
    assert said == "At generation 2 the Fréchet distance in pixel features is 4.00 with random; 4.00 with greedy (+0%)."


def test_without_an_arm_that_selects_at_random_none_is_the_baseline():
    groups = arms([synthetic("greedy", distances=(1, 2), **{"selection.metric": m}) for m in ("cosine", "whitened")])
    first, second, *_ = headline.headline(groups, "pixel", "pixel")
    assert "greedy (metric=cosine) selection (only the first of the arms)" in first
    assert "%" not in second
    assert any("there is no baseline" in words for words in headline.certainty(groups, "pixel"))


def test_each_arm_is_compared_with_the_random_one_that_is_like_it():
    cases = (("random", "replace", 8), ("random", "fresh", 4), ("greedy", "replace", 4), ("greedy", "fresh", 3))
    runs = [synthetic(s, distances=(1, d), **{"loop.paradigm": p}) for s, p, d in cases]
    second = headline.headline(arms(runs), "pixel", "pixel")[1].replace("\N{MINUS SIGN}", "-")
    assert "4.00 with greedy (replace) (-50%)" in second
    assert "3.00 with greedy (fresh) (-25% against random (fresh))" in second
    assert "4.00 with random (fresh)," in second
    sources: list[dict[str, Any]] = [{"data.source": "digits"}, {"data.source": "other", "loop.candidates": 2}]
    other = [synthetic(s, **config) for s, config in zip(("random", "greedy"), sources, strict=True)]
    assert "%" not in headline.headline(arms(other), "pixel", "pixel")[1]


def test_distances_are_judged_in_an_encoder_that_did_not_select():
    def runs(encoder):
        return [synthetic("random"), synthetic("greedy", **{"selection.encoder": encoder})]

    assert tables.distance_encoder(runs("classifier"), ["classifier", "pixel"]) == "pixel"
    assert tables.distance_encoder(runs("classifier"), ["classifier", "pixel", "inception"]) == "inception"
    assert tables.distance_encoder(runs("pixel"), ["classifier", "pixel"]) == "classifier"
    words = headline.certainty(arms(runs("classifier")), "pixel")
    assert "Selection: greedy in classifier features." in words
    assert "was also used for selection" in headline.certainty(arms(runs("pixel")), "pixel")[1]


def paired_points(run, entropies, scores, n=64):
    """The run with these entropies, of n images each, and scores."""
    rows = [
        Row(generation=row.generation, provenance=row.provenance,
            measures={"pixel": {"training_entropy": e, "generalization_score": float(np.exp(s))}},
            context=Context.model_validate({"encoders": {"pixel": {"entropy_n": n}}}))
        for row, e, s in zip(run.rows, entropies, scores, strict=True)
    ]  # fmt: skip
    return Run(Path(), run.name, run.config, tuple(rows), None, ())


def test_entropies_of_different_numbers_of_images_are_not_correlated(tmp_path):
    points = ([1.0, 2, 3], [1.0, 3, 2])
    equal = [paired_points(synthetic(s), *points) for s in ("random", "greedy")]
    uneven = [equal[0], paired_points(synthetic("greedy"), *points, n=128)]
    assert plots.entropy_scatter(arms(equal), "pixel") is not None
    assert plots.entropy_scatter(arms(uneven), "pixel") is None
    assert json.loads(export.as_json(equal))["correlation"]["pixel"]["r"] == pytest.approx(0.5)
    assert json.loads(export.as_json(uneven))["correlation"] == {}
    words = " ".join(headline.certainty(arms(uneven), "pixel"))
    assert "different numbers of images (64 in random-0 and 128 in greedy-0)" in words


def test_the_line_through_the_points_counts_a_shared_generation_once():
    """Generation 0 is the same in all runs; counted three times it would pull the line to (0, 0)."""
    ends = {
        "random": ([0.0, 1, 2], [0.0, 2, 1]),
        "greedy": ([0.0, 3, 1], [0.0, 2, 3]),
        "mine": ([0.0, 2, 3], [0.0, 3, 0]),
    }
    runs = [paired_points(synthetic(s), *points) for s, points in ends.items()]
    figure = plots.entropy_scatter(arms(runs), "pixel")
    line = present(figure).axes[0].lines[0]
    x, y = np.array([(0, 0), (1, 2), (2, 1), (3, 2), (1, 3), (2, 3), (3, 0)]).T
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), np.polyval(np.polyfit(x, y, 1), [0, 3]))


def test_scores_of_training_sets_of_different_sizes_are_not_compared():
    def sized(run, sizes):
        rows = tuple(with_context(row, n_training=n) for row, n in zip(run.rows, sizes, strict=True))
        return Run(Path(), run.name, run.config, rows, None, ())

    replace, accumulate = (synthetic(distances=(1, 2, 3), **{"loop.paradigm": p}) for p in ("replace", "accumulate"))
    even = arms([sized(replace, (9, 9, 9)), sized(accumulate, (9, 9, 9))])
    uneven = arms([sized(accumulate, (9, 18, 27)), sized(replace, (9, 9, 9))])
    assert "The generalization score in pixel features is" in headline.headline(even, "pixel", "pixel")[-1]
    assert "The generalization score" not in headline.headline(uneven, "pixel", "pixel")[-1]
    words = " ".join(headline.certainty(uneven, "pixel"))
    assert "27 with random (accumulate); 9 with random (replace)" in words
    assert "grows from 9 to 27 images" in " ".join(headline.certainty(uneven[:1], "pixel"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (float("nan"), "\N{EN DASH}"), (0, "0"), (0.12345, "0.123"), (12.345, "12.3"),
     (1234.6, "1,235"), (-2.5, "\N{MINUS SIGN}2.50"), (99.96, "100.0"), (1.5e9, "1.50e+09"),
     (0.00123, "0.00123"), (1e-7, "1.00e\N{MINUS SIGN}07")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert statistics.number(value) == text


# --- pictures ------------------------------------------------------------------------------------------------------


def test_samples_of_equal_seeds_stand_side_by_side(sweep):
    groups = arms(read_runs([sweep]))
    assert pictures.common_seed(groups) == 0
    chosen = pictures.shown_runs(groups)
    strips = pictures.sample_strips(chosen, [0, 1])
    assert set(strips) == {REAL, 0, 1}
    assert set(strips[0]) == {"random", "greedy"}
    assert strips[REAL]["random"].alt == "20 real images of the first training set"
    assert strips[0]["random"].alt == "Samples 0 to 19 of generation 0, random"


def test_no_common_seed_takes_the_first_of_each():
    groups = arms([synthetic("random", 1), synthetic("greedy", 2)])
    assert pictures.common_seed(groups) is None
    assert {run.seed for run in pictures.shown_runs(groups).values()} == {1, 2}


def test_selected_candidates_stand_beside_rejected_ones(tmp_path):
    """Half of the 40 samples of generation 0 are candidates; every other one of these trains generation 1."""
    run = report_runs.make_run(tmp_path / "run", "greedy", generations=2, n=40)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": {"size": 10}}))
    chosen = run / "generation_0001" / "selected"
    shutil.rmtree(chosen)
    found = read_run(run)
    samples = present(pictures.dataset(found, 0, "samples")).all()
    report_runs.write_set(chosen, samples[:20:2], Provenance(np.zeros(10, int), np.arange(0, 20, 2), ("",) * 10))
    (generation, cells), *more = pictures.choices({"greedy": found}).items()
    assert (generation, list(cells), more) == (1, ["greedy"], [])
    selected, rejected = cells["greedy"]
    assert selected.png == pictures.strip(samples[:20:2], 10, "").png
    assert rejected.png == pictures.strip(samples[1:20:2], 10, "").png
    assert selected.alt == "Selected candidates of generation 1, greedy"
    config["loop"]["candidates"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": {"size": 10}}))
    shutil.rmtree(chosen)
    report_runs.write_set(chosen, samples[:10], Provenance(np.zeros(10, int), np.arange(10), ("",) * 10))
    assert pictures.choices({"greedy": read_run(run)}) == {}


def test_nearest_pairs_are_the_nearest_and_sorted(sweep):
    run = read_runs([sweep / "random-0"])[0]
    found = pictures.nearest_pairs(run)
    assert found is not None
    generation, pairs = found
    samples = present(pictures.dataset(run, 1, "samples")).all().reshape(40, -1).astype(float)
    training = present(pictures.dataset(run, 1, "selected")).all().reshape(40, -1).astype(float)
    exact = np.sort(np.linalg.norm(samples[:, None] - training[None], axis=2).min(1))
    assert generation == 1
    assert [d for d, _ in pairs] == sorted(d for d, _ in pairs)
    assert pairs[0][0] == pytest.approx(exact[0])
    assert pairs[-1][0] == pytest.approx(exact[-1])


# --- the page ------------------------------------------------------------------------------------------------------


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
    assert shown == tables._WORDS.keys()
    row = with_context(
        synthetic().rows[0], encoders={"pixel": {"mirrored_copies_count": True, "ct": {"components": 4, "cells": 3}}}
    )
    assert tables.context([arm(Run(Path(), "a", {}, (row,), None, ()))]) == [
        ("pixel", ["mirrored copies count as copies: yes", "C_T: components 4, cells 3"])
    ]


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


def test_png_writes_one_file_a_figure(sweep, monkeypatch):
    monkeypatch.setattr(tables, "measures_of", lambda runs, encoder: ["frechet_distance"])
    report.write([sweep], sweep.parent / "figures", "png")
    names = {path.name for path in (sweep.parent / "figures").iterdir()}
    assert names == {
        "frechet_distance-pixel.png",
        "entropy-score-pixel.png",
        "spectra-pixel.png",
        "loss.png",
        "radii.png",
        "time.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (sweep.parent / "figures").iterdir())


# --- the command ---------------------------------------------------------------------------------------------------


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
