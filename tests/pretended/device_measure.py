"""`measure --device cuda`: the CPU's numbers, from distances that the device, pretended or real, computed."""

import contextlib
import sys
from typing import Any

import numpy as np
import pytest
from report_runs import digits

from entroloop.eval.compare import compare_sets

pytestmark = pytest.mark.gpu
PRETENDED = sys.modules.get("pretended")
COMPUTED = ("selection/exact/", "eval/measures/manifold.py", "eval/measures/diversity.py", "eval/measures/frechet.py")


def test_measure(tmp_path):
    paths = [tmp_path / f"{name}.npy" for name in "abtr"]
    for number, path in enumerate(paths):
        np.save(path, digits()[100 * number : 100 * number + 60])
    options: dict[str, Any] = {"flip": True, "bootstrap": 2}
    on_cpu = compare_sets(paths[:2], *paths[2:], device="cpu", **options)
    with PRETENDED.watch() if PRETENDED else contextlib.nullcontext() as seen:
        on_gpu = compare_sets(paths[:2], *paths[2:], device="cuda", **options)
    for path, row in on_cpu.items():
        for values, other in (
            (row, on_gpu[path]),
            *((one["context"]["bootstrap"]["intervals"] for one in (row, on_gpu[path])),),
        ):
            for name in values:
                if name != "context":
                    assert other[name] == pytest.approx(values[name], rel=1e-9 if PRETENDED else 1e-6, abs=1e-9), name
    if seen:
        for where in COMPUTED:
            assert sum(count for line, count in seen.lines.items() if line.startswith(where)), where
