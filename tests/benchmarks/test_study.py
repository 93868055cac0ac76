"""The study of the spread gap: packed rows, verdicts from runs with given numbers, and the tables of the pages."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import report_runs
from present import present

from entroloop.data.errors import UserError
from entroloop.eval.measures.row import Row
from entroloop.eval.report.runs import Run, read_runs
from paper import rows, study

ROOT = Path(__file__).parents[2]


def made(strategy, seed, distance, *, sampler=("euler", 6, 0.7), gap=-0.1, real=0.5, **more):
    """A run of two generations; generation 0 has a distance of 10 and real data a variance of 1000."""
    kind, steps, sigma = sampler
    config = {"seed": seed, "selection.strategy": strategy, "generations": 2, "loop.keep_real": 0.0}
    config |= {"loop.paradigm": "accumulate-subsample", "loop.candidates": 1, "loop.draw": "uniform"}
    config |= {"sample.sampler": kind, "sample.steps": steps, "sample.sigma_max": sigma, "sample.temperature": 1.0}
    config |= {key.replace("__", "."): value for key, value in more.items()}

    def row(generation, far, share):
        measures = dict.fromkeys(("precision", "recall", "coverage"), 0.5) | {"frechet_distance": far}
        measures |= {"spread_gap": gap, "covariance_trace": 1000.0}
        return Row(generation=generation, measures={"pixel": measures}, provenance={"real": share})

    return Run(
        Path(strategy), f"{strategy}{seed}", config, (row(0, 10.0, 1.0), row(1, distance, real)), row(None, 1, 1), ()
    )


def lines(table):
    plain = table.replace("\N{MINUS SIGN}", "-")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in plain.splitlines()[2:]]


def test_packed_runs_are_the_finished_runs(tmp_path):
    sweep = report_runs.make_sweep(tmp_path / "sweep", ("random", "greedy"), seeds=(0, 1), generations=2, n=30)
    report_runs.make_run(tmp_path / "sweep" / "begun", generations=1, planned=2, n=30)
    runs = [run for run in read_runs([sweep]) if run.finished]
    file = tmp_path / "rows.jsonl"
    file.write_text(rows.packed(read_runs([sweep]), "abc"))
    packed = {(run.strategy, run.seed): run for run in rows.unpacked(file)}
    assert len(runs) == len(packed) == 4
    for run in runs:
        same = packed[run.strategy, run.seed]
        assert same.finished
        for generation in (0, 1):
            for measure in (*rows.KEPT, "real_share"):
                value = run.value(generation, "pixel", measure)
                assert same.value(generation, "pixel", measure) == pytest.approx(value, rel=1e-3), measure
        assert present(same.baseline).value("pixel", "recall") == present(run.baseline).value("pixel", "recall")
    assert '"commit": "abc"' in file.read_text().splitlines()[0]
    with pytest.raises(UserError, match="no run is finished"):
        rows.packed([], "abc")
    file.write_text("not rows")
    with pytest.raises(UserError, match=r"rows\.jsonl: not a file of packed rows"):
        rows.unpacked(file)


def test_labels_say_how_arms_differ():
    assert study.label(made("greedy", 0, 1.0)) == "greedy"
    assert study.label(made("random", 0, 1.0, loop__keep_real=1)) == "real-only"
    assert study.label(made("random", 0, 1.0, loop__all_candidates=True)) == "all candidates"
    assert study.label(made("random", 0, 1.0, loop__draw="stratified")) == "random (stratified)"
    assert (
        study.label(made("greedy", 0, 1.0, loop__paradigm="replace", loop__candidates=2)) == "greedy (replace, c = 2)"
    )
    assert study.label(made("greedy", 0, 1.0, selection__options__trim=0.2)) == "greedy (trim 0.2)"


def test_distances_are_shares_of_the_real_variance_and_changes_are_paired_by_seed():
    luck = {1: 0.0, 2: 100.0, 3: 200.0}
    runs = [made("random", seed, 100 + more) for seed, more in luck.items()]
    runs += [made("greedy", seed, 60 + more, real=0.25) for seed, more in luck.items() if seed > 1]
    table = lines(study.strategies(runs, study.UNDER))
    assert [line[0] for line in table] == ["random", "greedy", "generation 0", "held-out real data"]
    assert table[0][3].startswith("20.0% [")
    assert table[1][1:5] == ["2", "25%", "21.0%", "-16%"]  # -40 of 250, the mean of random at seeds 2 and 3
    assert table[2][3] == "1.00% [1.00%, 1.00%]"
    assert table[3][3] == "0.100% [0.100%, 0.100%]"
    with pytest.raises(UserError, match="heun 12, sigma_max 20: has no finished run of `random`"):
        study.strategies(runs, study.OVER)


def test_verdicts_say_also_where_a_claim_fails():
    far = ("heun", 12, 20.0)
    noise = {1: 0.0, 2: 1.0, 3: 2.0}
    runs = []
    for seed, more in noise.items():
        under = {"random": 50, "greedy": 30, "threshold-decay": 20, "herding": 25}
        runs += [made(strategy, seed, 100.0 * (distance + more)) for strategy, distance in under.items()]
        over = {"random": 10, "greedy": 60, "herding": 10 + (-1) ** seed}
        runs += [
            made(
                strategy, seed, 100.0 * (distance + more), sampler=far, gap=0.3, real=0.7 if strategy == "greedy" else 0
            )
            for strategy, distance in over.items()
        ]
    by_claim = [(line[0], line[-1]) for line in lines(study.verdicts(runs))]
    assert [told for claim, told in by_claim if claim.startswith(("(i)", "(ii)"))] == ["holds"] * 3
    assert [told for claim, told in by_claim if claim.startswith("(iii)")] == ["does not hold"]  # 70% at the larger gap
    assert [told for claim, told in by_claim if claim.startswith("(iv)")] == ["holds", "not shown"]
    assert [told for claim, told in by_claim if claim.startswith("(v)")] == ["does not hold"]


def script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(present(spec))
    present(present(spec).loader).exec_module(module)
    return module


def test_tables_of_the_page_are_those_that_the_commands_print(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = script("results")
    text = (ROOT / "docs" / "results.md").read_text()
    commands = re.findall(r"^ {4}python benchmarks/results\.py ((?!pack).+ docs/results/.+)$", text, flags=re.MULTILINE)
    assert commands
    for command in commands:
        assert results.main(shlex.split(command)) == 0
        assert capsys.readouterr().out.strip() in text, command


def test_the_picture_is_made_from_the_committed_rows(tmp_path):
    files = [ROOT / "docs" / "results" / f"vectors-{name}.jsonl" for name in ("strategies", "dose")]
    script("gap").main([*map(str, files), "--out", str(tmp_path / "gap.png")])
    assert (tmp_path / "gap.png").stat().st_size > 10_000
