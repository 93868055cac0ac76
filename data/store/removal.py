"""Which large files of a finished generation stay on disk, and how those that go are accounted for.

    sealed folder  ->  remove  ->  removed.json, then the files go; the manifest stays and says what they were

What is removed is decided where the phases of a run are known (`entroloop.launcher.run.retention`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from entroloop.data import files
from entroloop.data.config import Section
from entroloop.data.store import manifest


class KeepConfig(Section):
    """What stays on disk. `needed` deletes a file once no later phase can read it, counting the phases of generations
    that may still be added to a finished run. Training sets, weights and measures always stay."""

    samples: Literal["all", "needed"] = "all"
    """Shards of samples. The first shard of each generation stays for the report, and with `data.selected=index` all
    that training sets refer to."""
    features: Literal["all", "needed"] = "all"
    """Features of samples."""
    checkpoints: Literal["none", "all"] = "none"
    """Resume states of finished trainings: `none`, or `all` that `train.keep` left."""


def remove(folder: Path, names: list[str]) -> int:
    """Removes sealed files of a sealed folder, once they are noted as removed; returns the bytes that became free."""
    before = manifest.removed(folder)
    new = sorted(set(names) - before)
    if new:
        files.put(folder / manifest.REMOVED, files.json_bytes({"removed": sorted(before | set(new))}))
    freed = 0
    for name in names:  # also those that an attempt killed in between has noted only
        path = folder / name
        if path.is_file():
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
    return freed
