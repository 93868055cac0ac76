"""Removes large files of finished generations, and records which files were removed.

    sealed folder  ->  remove  ->  writes removed.json, then deletes the files; the manifest still lists them

`entroloop.launcher.run.retention`, which knows the phases of a run, decides which files to remove.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from entroloop.data import files
from entroloop.data.config import Section
from entroloop.data.store import manifest


class KeepConfig(Section):
    """Files that stay on disk. `needed` deletes a file once no later phase can read it, counting the phases of
    generations that may still be added to a finished run. Training sets, weights and measures always stay."""

    samples: Literal["all", "needed"] = "all"
    """Shards of samples. The first shard of each generation stays for the report. With `data.selected=index`, all
    shards that training sets refer to stay as well."""
    features: Literal["all", "needed"] = "all"
    """Features of samples."""
    checkpoints: Literal["none", "all"] = "none"
    """Resume states of finished trainings: `none`, or `all` resume states that `train.keep` left."""


def remove(folder: Path, names: list[str]) -> int:
    """Notes these files of a sealed folder as removed, then deletes them. Returns the number of bytes freed."""
    before = manifest.removed(folder)
    new = sorted(set(names) - before)
    if new:
        files.put(folder / manifest.REMOVED, files.json_bytes({"removed": sorted(before | set(new))}))
    freed = 0
    for name in names:  # also names that an earlier, killed attempt noted but did not delete
        path = folder / name
        if path.is_file():
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
    return freed
