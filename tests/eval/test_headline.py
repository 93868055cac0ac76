"""The first sentences of a report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import paired_points, synthetic, with_context

from entroloop.eval.measures.row import Row
from entroloop.eval.report import export, headline, plots, tables
from entroloop.eval.report.arms import arms, baseline_arm, comparable
from entroloop.eval.report.runs import Run


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


def test_arms_without_a_common_seed_say_so():
    groups = arms([synthetic("random", s, (1, 2)) for s in (1, 2)] + [synthetic("greedy", 3, (1, 3))])
    assert comparable(groups).seeds == ()
    assert "no seed in common" in headline.certainty(groups, "pixel")[0]


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
