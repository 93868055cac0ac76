"""Settings of the threshold filter on sealed pools: the pool's rows, and pools with a known answer."""

from pathlib import Path

import numpy as np
import pytest
import report_runs

from entroloop.data.errors import UserError
from entroloop.data.store.shards import REAL, Provenance
from entroloop.eval.measures.row import Row
from entroloop.eval.report.runs import Run
from paper import sensitivity

N = 12


@pytest.fixture
def run(tmp_path):
    """N real digits, and 4 N samples that are one digit with a single pixel changed a little: only real ones spread."""
    real = report_runs.digits()[:N]
    samples = np.repeat(report_runs.digits()[N : N + 1], 4 * N, axis=0)
    samples[:, 0, 0, 0] = np.arange(4 * N)
    place = tmp_path / "generation_0000"
    report_runs.write_set(place / "selected", real, Provenance(np.full(N, REAL), np.arange(N), ("",) * N))
    report_runs.write_set(place / "samples", samples, Provenance.sampled(0, 0, 4 * N))
    config = {"seed": 3, "selection.strategy": "random"}
    return Run(Path(tmp_path), "run", config, (Row(generation=0, measures={}, provenance={}),), None, ())


def test_the_pool_is_the_real_images_and_then_the_first_samples(run):
    rows, n = sensitivity.pool(run, 2)
    assert n == N
    assert rows.shape == (3 * N, 64)
    assert np.array_equal(rows[:N].reshape(N, 1, 8, 8), report_runs.digits()[:N])
    assert np.array_equal(rows[N:, 0], np.arange(2 * N))


def test_more_candidates_than_were_sampled_are_refused(run):
    with pytest.raises(UserError, match="has 48 samples per generation, fewer than 5 N"):
        sensitivity.pool(run, 5)


def test_strong_filters_keep_the_real_images_that_alone_spread(run):
    table = sensitivity.threshold_table([run]).replace("\N{MINUS SIGN}", "-")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    found = {tuple(line[:4]): (float(line[4]), line[5], line[6]) for line in lines}
    assert len(found) == len(lines) == 4 + 3 + 15
    assert found["random", "2", "", ""][0] == 0
    assert found["random", "2", "", ""][2] == "33%"
    # all N real images but one may be kept beside the first sample met
    assert found["greedy", "2", "", ""][1] in ("92%", "100%")
    assert found["greedy", "2", "", ""][0] > 50
    assert found["threshold-decay", "4", "1", "0.95"][1:] == (found["greedy", "2", "", ""][1], "20%")
