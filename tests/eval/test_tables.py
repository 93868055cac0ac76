"""The table that ends a sweep has the numbers of the rows."""

from dataclasses import replace

from report_runs import make_sweep

from entroloop.eval.report import statistics, tables
from entroloop.eval.report.arms import arms, comparable
from entroloop.eval.report.runs import read_runs


def test_the_summary_has_a_line_per_arm_with_its_numbers(tmp_path):
    runs = read_runs([make_sweep(tmp_path, ("greedy", "random"), generations=2, n=40)])
    head, names, *lines = tables.summary(runs).splitlines()
    assert head == "generation 1, pixel features, 2 seeds:"
    assert names.split("  ")[0] == "arm"
    for arm, line in zip(comparable(arms(runs)).measured, lines, strict=True):
        wanted = [(1, "frechet_distance"), (0, "frechet_distance"), (1, "recall"), (1, "real_share")]
        found = [sum(arm.values(g, "pixel", m)) / 2 for g, m in wanted]
        assert line.split() == [arm.label, *map(statistics.number, found)]


def test_the_summary_of_vectors_names_their_space(tmp_path):
    runs = read_runs([make_sweep(tmp_path, ("random",), seeds=(0,), generations=2, n=40)])
    assert ", pixel features, " in tables.summary(runs)
    assert ", vector features, " in tables.summary([replace(run, vectors=True) for run in runs])


def test_there_is_no_summary_before_generation_1(tmp_path):
    assert tables.summary(read_runs([make_sweep(tmp_path, generations=1, n=40)])) == ""
