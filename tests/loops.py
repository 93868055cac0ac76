"""A loop on digits that takes seconds, and how to run commands and compare runs in tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked

from entroloop.launcher import config as configuration
from entroloop.launcher.config import Config

TINY: dict[str, Any] = {
    "name": "tiny",
    "generations": 2,
    "data": {"source": "digits", "size": 48, "heldout": 64, "labelled": 0, "shard_size": 32, "limit": 160},
    "selection": {"strategy": "greedy", "encoder": "pixel"},
    "network": {"channels": [8, 8], "norm_groups": 4, "middle_attention": False},
    "train": {"kimg": 0.32, "batch": 16, "checkpoint_kimg": 0.08, "log_kimg": 0.08},
    "sample": {"steps": 3, "shard_size": 32, "batch": 16},
    "evaluation": {"encoders": ["pixel"]},
}
# The same on a table of measurements, by a network that is half as much work.
VECTORS = {
    **TINY,
    "data": {**TINY["data"], "source": "wine", "heldout": 48},
    "network": {"width": 16, "depth": 1},
}
# The same on points of a mixture, for tests of what surrounds the training.
POINTS = {
    **TINY,
    "data": {"source": "mixture", "limit": 120, "size": 48, "heldout": 32, "labelled": 0},
    "network": {"width": 8, "depth": 1},
}


def tiny(folder: Path, *overrides: str, of: dict[str, Any] = TINY) -> Config:
    return configuration.compose(of, [f"folder={folder}", *overrides], "tiny")


def tiny_file(folder: Path, *overrides: str, of: dict[str, Any] = TINY) -> Path:
    """The same as a configuration file in `folder`."""
    path = folder / "tiny.yaml"
    path.write_bytes(configuration.dump(tiny(folder / "runs", *overrides, of=of)))
    return path


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `entroloop …` in a forked process, which has what it would import already."""
    return forked.entroloop(*arguments, **environment).result()


def python_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m entroloop.launcher …`, as people do: seconds more than `command` takes, for the imports."""
    return subprocess.run(
        [sys.executable, "-m", "entroloop.launcher", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", **environment},
        timeout=300,
        check=False,
    )


def sealed_bytes(run: Path) -> dict[str, bytes]:
    """Every file of a run that a manifest names, and the manifests."""
    from entroloop.data.store import manifest

    found = {}
    for path in sorted(run.rglob(manifest.MANIFEST)):
        found[str(path.relative_to(run))] = path.read_bytes()
        for entry in manifest.read(path.parent).files:
            found[str((path.parent / entry.name).relative_to(run))] = (path.parent / entry.name).read_bytes()
    return found
