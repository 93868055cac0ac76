"""Intervals, paired differences and correlations."""

import numpy as np
import pytest
from report_runs import arm, synthetic

from entroloop.eval.report import statistics, tables
from entroloop.eval.report.arms import arms


def test_the_band_is_a_student_interval_from_three_seeds_on():
    three = arm(*(synthetic(seed=s, distances=(1 + s,)) for s in range(3)))
    line = statistics.curve(three, "pixel", "frechet_distance")
    assert line.mean == [2.0]
    assert line.high[0] - 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    two = statistics.curve(arm(*three.runs[:2]), "pixel", "frechet_distance")
    assert (two.low, two.high, two.n) == ([1.0], [2.0], [2])


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


def test_a_curve_ends_where_its_seeds_part():
    line = statistics.curve(
        arm(synthetic(seed=0, distances=(1, 2, 9)), synthetic(seed=1, distances=(3, 4))), "pixel", "frechet_distance"
    )
    assert line.mean == [2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (float("nan"), "\N{EN DASH}"), (0, "0"), (0.12345, "0.123"), (12.345, "12.3"),
     (1234.6, "1,235"), (-2.5, "\N{MINUS SIGN}2.50"), (99.96, "100.0"), (1.5e9, "1.50e+09"),
     (0.00123, "0.00123"), (1e-7, "1.00e\N{MINUS SIGN}07")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert statistics.number(value) == text
