"""Compares, byte for byte, the files that the starting commit of the redesign and this tree seal.

    python tests/golden.py [CONFIGURATION …]      prints one line per configuration; exits 1 where bytes differ

Both sides run on this machine, from a checkout of `BASE` and from the working tree. Manifests and the
form of a row of measures may differ. Of rows, the numbers are compared. Every other sealed file must be equal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BASE = os.environ.get("GOLDEN_BASE", "22e9117")
ROOT = Path(__file__).parent.parent
DIGITS = {
    "generations": 3,
    "data": {"source": "digits", "limit": 260, "size": 48, "heldout": 64, "labelled": 96, "shard_size": 32},
    "selection": {"strategy": "greedy", "encoder": "pixel"},
    "network": {"channels": [8, 8], "norm_groups": 4, "middle_attention": False},
    "train": {"kimg": 0.64, "batch": 16},
    "sample": {"steps": 3, "shard_size": 32, "batch": 16},
    "evaluation": {"encoders": ["pixel"]},
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "replace": {"evaluation": {"encoders": ["pixel", "classifier"]}},
    "accumulate": {"loop": {"paradigm": "accumulate"}, "selection": {"strategy": "threshold-decay"}},
    "subsample-fresh": {
        "loop": {"paradigm": "accumulate-subsample", "candidates": 1, "fresh": {"share": 0.1}},
        "data": {"size": 40},
        "selection": {"strategy": "adaptive-threshold"},
    },
    "vectors": {
        "data": {"source": "wine", "size": 48, "heldout": 48, "labelled": 32, "limit": None},
        "network": {"kind": "mlp"},
        "sample": {"sampler": "euler"},
    },
    "labels-guidance": {
        "train": {"labels": True, "objective": "ddpm"},
        "sample": {"sampler": "ddpm", "guidance": 2.0, "steps": 4},
        "loop": {"balanced": True},
        "selection": {"strategy": "random"},
    },
    "warm-index": {
        "train": {"warm_start": True, "more_emas": {"long": {"rule": "power"}}},
        "data": {"selected": "index"},
        "loop": {"paradigm": "accumulate-subsample"},
    },
}


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


def run(tree: Path, name: str, folder: Path) -> Path:
    """Runs one configuration with the code of `tree`; returns the run's folder."""
    values = merged(DIGITS, CONFIGURATIONS[name]) | {"name": name, "folder": str(folder)}
    if "network" in CONFIGURATIONS[name]:
        values["network"] = CONFIGURATIONS[name]["network"]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    environment = {**os.environ, "PYTHONPATH": str(tree / ".types"), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "entroloop.launcher", "run", path],
        env=environment, check=True, stdout=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    return folder / name


def sealed(folder: Path) -> dict[str, bytes]:
    """Every file that a manifest below `folder` names."""
    found = {}
    for path in folder.rglob("manifest.json"):
        for entry in json.loads(path.read_text())["files"]:
            file = path.parent / (entry["name"] if isinstance(entry, dict) else entry)
            found[str(file.relative_to(folder))] = file.read_bytes()
    return found


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def compare(name: str, base: Path, work: Path) -> str:
    kept = Path(tempfile.gettempdir()) / f"entroloop-golden-{BASE}" / name  # what the base commit sealed, made once
    if not kept.is_dir():
        made = run(base, name, work / "before")
        kept.parent.mkdir(exist_ok=True)
        made.rename(kept)
    before, after = sealed(kept), sealed(run(ROOT, name, work / "after"))
    wrong = []
    for file in sorted({*before, *after}):
        if file not in before or file not in after:
            wrong.append(f"{file} only {'before' if file in before else 'after'}")
        elif file.endswith("metrics.jsonl"):
            a, b = (set(numbers(json.loads(x[file]))) for x in (before, after))
            if a != b:
                wrong.append(f"{file}: {sorted(a ^ b)[:6]}")
        elif before[file] != after[file]:
            wrong.append(f"{file} differs")
    return f"{name}: " + ("; ".join(wrong[:8]) if wrong else f"{len(before)} files equal")


def main() -> None:
    names = sys.argv[1:] or list(CONFIGURATIONS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = work / "base"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", base, BASE], check=True)
        try:
            (work / "before").mkdir()
            (work / "after").mkdir()
            lines = []
            for name in names:
                lines.append(compare(name, base, work))
                print(lines[-1], flush=True)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", base], check=True)
    sys.exit(any("equal" not in line for line in lines))


if __name__ == "__main__":
    main()
