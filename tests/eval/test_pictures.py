"""Which samples stand in the grids."""

import shutil

import numpy as np
import pytest
import report_runs
import yaml
from present import present
from report_runs import synthetic

from entroloop.data.store.shards import REAL, Provenance
from entroloop.eval.report import pictures
from entroloop.eval.report.arms import arms
from entroloop.eval.report.runs import read_run, read_runs


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
