"""Tables of results: known differences, intervals, rates and correlations, from runs with given numbers."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import report_runs
from present import present
from scipy import stats

from entroloop.data.errors import UserError
from entroloop.eval.measures.row import Context, Row
from entroloop.eval.report import statistics, style
from entroloop.eval.report.runs import Run
from paper import claims, tables


def made(strategy, seed, distances, *, scores=None, entropies=None, real=1.0, n=64, planned=None):
    """A run of one encoder, a row a number."""
    rows = []
    for g, distance in enumerate(distances):
        measures = {"frechet_distance": distance}
        measures |= {"generalization_score": scores[g]} if scores else {}
        measures |= {"training_entropy": entropies[g]} if entropies else {}
        context = Context.model_validate({"encoders": {"pixel": {"entropy_n": n}}})
        rows.append(Row(generation=g, measures={"pixel": measures}, provenance={"real": real}, context=context))
    config = {"seed": seed, "selection.strategy": strategy, "generations": planned or len(rows)}
    return Run(Path(f"{strategy}{seed}"), f"{strategy}{seed}", config, tuple(rows), None, ())


def cells(table):
    plain = table.replace("\N{MINUS SIGN}", "-")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in plain.splitlines() if line[:1] == "|"]


def test_differences_are_paired_by_seed_and_only_seeds_of_every_finished_arm_count():
    luck = {0: 100.0, 1: 0.0, 2: 50.0, 3: 999.0}
    runs = [made("random", seed, [5.0, 100 + more]) for seed, more in luck.items()]
    runs += [made("greedy", seed, [5.0, 100 + luck[seed] - 15 - seed], real=0.25) for seed in (0, 1, 2)]
    runs += [made("greedy", 3, [5.0], planned=2)]  # unfinished: seed 3 counts nowhere
    groups = claims.finished_arms(runs)
    table = cells(tables.comparison(groups, groups[0], [("pixel", "frechet_distance")]))
    random, greedy = table[2], table[3]
    assert random[:3] == ["random", "3", "100% [100%, 100%]"]
    assert greedy[:3] == ["greedy", "3", "25% [25%, 25%]"]
    assert random[3].startswith("150 [")
    assert random[4] == ""
    # differences -15, -16, -17 of a mean of 150: -10.67 % with half width t(2) * 1 / sqrt(3) of 150
    half = stats.t.ppf(0.975, 2) / math.sqrt(3) / 150
    low, high = (f"{100 * (-16 / 150 + sign * half):.0f}%" for sign in (-1, 1))
    assert greedy[4] == f"-11% [{low}, {high}]"


def test_only_the_arms_that_are_named_decide_which_seeds_count():
    runs = [made(strategy, seed, [1.0]) for strategy in ("random", "greedy") for seed in range(4)]
    runs.append(made("threshold-decay", 2, [1.0]))
    assert [len(arm.runs) for arm in claims.finished_arms(runs)] == [1, 1, 1]
    assert [(arm.label, len(arm.runs)) for arm in claims.finished_arms(runs, ["greedy", "random"])] == [
        ("greedy", 4),
        ("random", 4),
    ]


def test_every_table_ends_with_real_test_against_real_train_once_a_seed():
    runs = [made(strategy, seed, [5.0, 9.0 + seed]) for strategy in ("random", "greedy") for seed in range(3)]
    context = Context(n_generated=512, n_reference=None, n_training=128)
    runs = [
        dataclasses.replace(run, baseline=Row(
            generation=None,
            measures={"pixel": {"frechet_distance": 1.0 + run.seed}},
            provenance={"real": 1.0},
            context=context,
        ))
        for run in runs
    ]  # fmt: skip
    groups, columns = claims.finished_arms(runs), [("pixel", "frechet_distance"), ("", "real_share")]
    low, high = statistics.interval([1.0, 2.0, 3.0])
    known = f"2.00 [{low:.3g}, {high:.3g}]"
    table = cells(tables.comparison(groups, groups[0], columns))
    assert table[0][3:] == ["Fréchet distance, pixel", "against random", "Share of real images", "against random"]
    assert table[-1] == ["real test vs real train (512 against 128)", "", "", known, "", "1.00 [1.00, 1.00]", ""]
    table = cells(tables.course(groups, columns))
    assert [row[2:] for row in table[-2:]] == [[known, "", "", ""], ["1.00 [1.00, 1.00]", "", "", ""]]
    assert "real test" not in tables.course(claims.finished_arms([made("random", 0, [1.0])]), columns)


def test_rate_of_an_exponential_is_its_factor():
    assert tables.rate([8.0, 4.0, 2.0, 1.0]) == pytest.approx(-0.5)
    runs = [made("random", s, [1, 1, 1], scores=[2.0 + s, 0.8 * (2 + s), 0.64 * (2 + s)]) for s in range(3)]
    table = cells(tables.course(claims.finished_arms(runs), [("pixel", "generalization_score")]))
    assert table[2][2:5] == ["3.00", "2.40", "1.92"]
    assert table[2][5].startswith("-1.08 [")
    assert table[2][6] == "-20.0% [-20.0%, -20.0%]"


def test_entropy_has_no_rate_and_two_seeds_have_no_interval():
    runs = [made("random", s, [1, 1], scores=[2, 1], entropies=[-3.0, -5.0]) for s in range(2)]
    table = cells(tables.course(claims.finished_arms(runs), [("pixel", "training_entropy")]))
    assert table[2][4] == "-2.00"
    assert table[2][5] == ""


def test_entropies_of_different_numbers_of_images_are_refused():
    runs = [made("random", 0, [1.0]), made("greedy", 0, [1.0], n=128)]
    with pytest.raises(UserError, match=r"64 in random0, 128 in greedy0.*evaluation\.entropy_size"):
        claims.finished_arms(runs)


def test_arms_without_a_common_seed_and_unknown_arms_are_refused():
    with pytest.raises(UserError, match="no seed is finished in every arm"):
        claims.finished_arms([made("random", 0, [1.0]), made("greedy", 1, [1.0])])
    with pytest.raises(UserError, match="best: is no arm; these are: random"):
        claims.named(claims.finished_arms([made("random", 0, [1.0])]), "best")


def test_correlation_counts_a_shared_generation_once_and_draws_whole_clusters():
    rng = np.random.default_rng(0)
    runs, points = [], []
    for seed in range(5):
        start = rng.normal()
        for strategy in ("random", "greedy"):
            entropy = [start, *rng.normal(size=2)]
            log_score = [start, *(np.array(entropy[1:]) + rng.normal(size=2))]
            runs.append(made(strategy, seed, [1, 1, 1], scores=list(np.exp(log_score)), entropies=entropy))
            points += list(zip(entropy, log_score, strict=True))
    table = cells(tables.correlations(claims.finished_arms(runs), ["pixel"]))
    every = np.array(sorted({(round(x, 9), round(y, 9)) for x, y in points}))
    assert len(every) == 25
    r = float(stats.pearsonr(every[:, 0], every[:, 1])[0])
    all_arms = table[2]
    assert all_arms[:2] == ["all", "pixel"]
    assert all_arms[5:] == ["25", "10"]
    assert float(all_arms[2]) == pytest.approx(r, abs=6e-4)
    for interval in all_arms[3:5]:
        low, high = (float(x) for x in interval.strip("[]").split(","))
        assert low < r < high
    assert [line[0] for line in table[3:]] == ["random", "greedy"]
    assert table[3][5] == "15"


def test_points_that_runs_share_are_dropped_after_the_first():
    """Also within a cluster: the runs of a seed, taken together, have generation 0 once."""
    assert statistics.once([[(1, 2), (3, 4), (1, 2)], [(1, 2), (5, 6), (5, 6)]]) == [[(1, 2), (3, 4)], [(5, 6)]]


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "benchmarks" / "results.py"
    spec = importlib.util.spec_from_file_location("results_script", path)
    module = importlib.util.module_from_spec(present(spec))
    present(present(spec).loader).exec_module(module)
    return module


@pytest.mark.slow
def test_the_command_makes_every_table_from_folders(script, tmp_path, capsys):
    sweep = report_runs.make_sweep(tmp_path / "sweep", ("random", "greedy"), seeds=(0, 1, 2), generations=2, n=30)
    for table, word in (("comparison", "against random"), ("course", "first to last"), ("correlation", "by seeds")):
        assert script.main([table, str(sweep)]) == 0
        assert word in capsys.readouterr().out
    assert script.main(["comparison", str(sweep), "--arms", "best"]) == 2
    assert "these are: random" in capsys.readouterr().err
    assert script.main(["comparison", str(tmp_path / "nothing")]) == 2
    assert "not a run or a sweep" in capsys.readouterr().err


@pytest.mark.parametrize("label", ["random", "adaptive-threshold (accumulate-subsample, candidates=2)", "long " * 30])
def test_legends_fit_the_figure(label):
    columns = style.legend_columns([label] * 7, 4.6)
    figure, _ = style.new_figure(4.6, 6.0)
    for _ in range(7):
        figure.axes[0].plot([0], [0], "o", label=style.wrapped(label, 4.6))
    figure.legend(loc="lower center", ncols=columns, fontsize=8)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
