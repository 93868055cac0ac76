"""The figures: what they draw, and how arms are told apart."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import report_runs
from matplotlib.collections import LineCollection
from present import present
from report_runs import arm, paired_points, synthetic

from entroloop.eval.report import page as report
from entroloop.eval.report import plots, progress, style, tables
from entroloop.eval.report.arms import arms
from entroloop.eval.report.runs import Run, read_runs


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
