"""Runs that belong together, their labels, and which arms are compared."""

from typing import Any

import numpy as np
from present import present
from report_runs import synthetic

from entroloop.eval.report import headline, plots, tables
from entroloop.eval.report.arms import arms, comparable, differences
from entroloop.eval.report.runs import flat


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
