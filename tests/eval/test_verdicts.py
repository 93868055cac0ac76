"""Better and worse: directions of the measures, verdicts from values by seed, and the sentences that tell both."""

from pathlib import Path

import pytest

from entroloop.eval.catalogue import MEASURES, SHOWN
from entroloop.eval.measures.row import Row
from entroloop.eval.report import headline, tables, verdicts
from entroloop.eval.report.arms import arms
from entroloop.eval.report.runs import Run


def run(strategy, seed, *generations):
    """A Run without a folder, from the measures of its generations by encoder."""
    rows = tuple(Row(generation=g, measures=m, provenance={}) for g, m in enumerate(generations))
    config = {"seed": seed, "generations": len(rows), "selection.strategy": strategy}
    return Run(Path(), f"{strategy}-{seed}", config, rows, None, ())


@pytest.mark.parametrize("measure", MEASURES.built_in)
def test_every_measure_has_a_direction_and_a_name_within_sentences(measure):
    mark, words = verdicts.direction(measure)
    assert mark in ("↑", "↓", "≈") or mark[0] == "→"
    assert words.endswith("better")
    assert ", " not in verdicts.name(measure)  # the headline lists names
    facts = SHOWN[measure]
    assert facts.higher_is_better is None or facts.ideal is None


@pytest.mark.parametrize(
    ("measure", "ours", "theirs", "expected"),
    [
        ("recall", {0: 0.5}, {0: 0.4}, 1),
        ("recall", {0: 0.4}, {0: 0.5}, -1),
        ("recall", {0: 0.405}, {0: 0.4}, 0),  # less than SAME
        ("frechet_distance", {0: 5}, {0: 4}, -1),
        ("density", {0: 1.1}, {0: 0.5}, 1),  # 0.1 from the ideal value against 0.5
        ("density", {0: 2.0}, {0: 0.5}, -1),
        ("ct_score", {0: -3}, {0: 1}, -1),
        ("vendi_score", {0: 3}, {0: 1}, 0),  # no direction
        ("recall", {0: 1.0}, {1: 0.1}, 0),  # no seed in common
        ("recall", {0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5, 2: 0.6}, 1),
        ("recall", {0: 0.5, 1: 0.6, 2: 0.2}, {0: 0.4, 1: 0.5, 2: 0.3}, 0),  # the interval contains 0
        ("recall", {0: 0.5, 1: 0.501, 2: 0.502}, {0: 0.499, 1: 0.5, 2: 0.501}, 1),  # small, and certain
    ],
)
def test_a_verdict_follows_the_direction_and_the_interval(measure, ours, theirs, expected):
    assert verdicts.verdict(measure, ours, theirs) == expected
    if expected and verdicts.cost(measure, 0.0) is not None:
        assert verdicts.verdict(measure, theirs, ours) == -expected


def sweep(recall):
    """Three seeds of random and greedy: {arm: recall by seed} at generation 1, after 0.5 at generation 0."""
    return arms([
        run(strategy, seed, *({"pixel": {"recall": r, "frechet_distance": d}} for r, d in ((0.5, 1.0), (now, 2.0))))
        for strategy, values in recall.items() for seed, now in enumerate(values)
    ])  # fmt: skip


def test_the_best_arm_needs_an_interval_against_every_other():
    groups = sweep({"random": (0.1, 0.2, 0.3), "greedy": (0.2, 0.3, 0.4), "threshold-decay": (0.1, 0.2, 0.3)})
    assert verdicts.best(groups, 1, "pixel", "recall") == "greedy"
    assert verdicts.best(sweep({"random": (0.1, 0.2), "greedy": (0.2, 0.3)}), 1, "pixel", "recall") is None
    assert verdicts.best(sweep({"random": (0.1, 0.2, 0.3), "greedy": (0.2, 0.1, 0.4)}), 1, "pixel", "recall") is None
    assert verdicts.best(groups[:1], 1, "pixel", "recall") is None
    found = {
        line.measure: line.best
        for line in tables.last_table([run for arm in groups for run in arm.runs], groups, "pixel")["lines"]
    }
    assert (found["recall"], found["frechet_distance"]) == (1, None)


def test_the_headline_says_what_got_worse_and_names_one_feature_space_a_sentence():
    def rows(recall, density, score):
        pixel = {"generalization_score": score, "density": density, "frechet_distance": 3.0}
        return {"classifier": {"frechet_distance": 2.0, "recall": recall, "precision": 0.5}, "pixel": pixel}

    groups = arms(
        [run("random", 0, rows(0.5, 0.9, 4), rows(0.3, 0.4, 3)), run("greedy", 0, rows(0.5, 0.9, 4), rows(0.4, 0.3, 3))]
    )
    words = headline.headline(groups, "pixel", "classifier")
    assert "In classifier features, recall got worse." in words
    assert "In pixel features, density got worse." in words
    assert "In classifier features, greedy is better in recall than random." in words
    assert all(sentence.count(" features") == 1 for sentence in words)
