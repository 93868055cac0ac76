"""Training, sampling, encoders, selection and measures on a pretended CUDA device, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import compiled
import numpy as np
import pytest

from entroloop.selection import nearest, select

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(once):
    """The device's library, compiled once per session."""
    if reason := compiled.missing():
        pytest.skip(reason)
    return once(f"pretended-{compiled.version()}", compiled.library) / "guard.so"


@pytest.mark.slow
def test_on_the_pretended_device(library):
    """All of `device_*.py` in one process, which imports torch once."""
    files = sorted(map(str, HERE.glob("device_*.py")))
    command = [sys.executable, "-m", "pytest", "-p", "pretended", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, env=compiled.environment(library), capture_output=True, text=True, cwd=HERE, timeout=600
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_two_ranks_on_the_pretended_device(library, tmp_path):
    rows = np.random.default_rng(0).standard_normal((90, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    command = [sys.executable, f"{HERE}/two_ranks.py"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], env=compiled.environment(library), stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank in ranks:
        error = rank.communicate(timeout=300)[1]
        assert rank.returncode == 0, error[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    for name in ("greedy", "threshold-decay"):
        assert first[name] == second[name] == select(rows, 45, name).ids.tolist()
    assert first["bound"] == second["bound"] == "cuda:0"
    assert first["sum"] == second["sum"] == [2, 2]
    assert first["any"]
    assert second["any"]
    expected = nearest(rows, rows, 2, exclude_self=True)
    for whole, *parts in zip(expected, first["nearest"], second["nearest"], strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)
