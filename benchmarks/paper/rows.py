"""The rows of finished runs in one small file, from which tables are printed where the runs themselves are not at hand.

    sealed runs  ->  packed  ->  docs/results/NAME.jsonl  ->  unpacked  ->  [Run]

The first line holds all that the runs share: configuration, versions, processor, commit. Each other line is one run:
how its configuration differs, seconds per phase, the digest of its last seal, and the measures in `KEPT` and the user's
own, to four digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entroloop.data.errors import UserError, reading
from entroloop.data.registry import is_own
from entroloop.data.runfolder import Layout
from entroloop.data.store import manifest
from entroloop.eval.measures.row import Row
from entroloop.eval.report.runs import Run, flat

KEPT = (
    "frechet_distance", "precision", "recall", "density", "coverage", "generalization_score_ratio", "spread_gap",
    "covariance_trace",
)  # fmt: skip
_ASIDE = ("sweep.", "slurm.", "tracking.", "forked_from.", "folder", "modules")


def packed(runs: Sequence[Run], commit: str) -> str:
    """The text of the file. `commit` is that of the code that made the runs."""
    finished = sorted((run for run in runs if run.finished), key=lambda run: (run.seed, run.name))
    if not finished:
        raise UserError("no run is finished: nothing to pack")
    facts = [_facts(run) | {"commit": commit} for run in finished]
    shared = {key: value for key, value in facts[0].items() if all(f.get(key) == value for f in facts)}
    lines = [shared]
    for run, own in zip(finished, facts, strict=True):
        seconds: dict[str, float] = {}
        for line in run.stats:
            if line.get("sealed"):
                seconds[line["phase"]] = round(seconds.get(line["phase"], 0.0) + line["seconds"], 1)
        lines.append(
            {
                "differs": {key: value for key, value in own.items() if key not in shared},
                "seconds": seconds,
                "seal": manifest.read(Layout(run.folder).generation(run.planned - 1) / "metrics").digest,
                "rows": [_row(row) for row in run.rows],
            }
        )
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)


def _facts(run: Run) -> dict[str, Any]:
    made: dict[str, Any] = next((line["numerics"] for line in run.stats if line.get("numerics")), {})
    config = {key: value for key, value in run.config.items() if not key.startswith(_ASIDE)}
    return config | flat(made, "made_with.")


def _row(row: Row) -> dict[str, Any]:
    measures = {
        encoder: {m: _short(v) for m, v in values.items() if m in KEPT or is_own(m)}
        for encoder, values in row.measures.items()
    }
    real = {"real": _short(row.value("", "real_share"))}
    out: dict[str, Any] = {"generation": row.generation, "measures": measures, "provenance": real}
    return out | ({"baseline": _row(row.baseline)} if row.baseline else {})


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def unpacked(path: Path) -> list[Run]:
    """The runs of a file that `packed` wrote. Raises UserError for another file."""
    with reading(str(path), "not a file of packed rows"):
        shared, *lines = map(json.loads, path.read_text().splitlines())
    return [_run(path, {**shared, **line["differs"]}, line) for line in lines]


def _run(path: Path, config: dict[str, Any], line: Mapping[str, Any]) -> Run:
    rows = tuple(Row.from_json(json.dumps(row)) for row in line["rows"])
    config = {key: value for key, value in config.items() if key != "commit" and not key.startswith("made_with.")}
    baseline = next((row.baseline for row in rows if row.baseline), None)
    return Run(path, config["name"], config, rows, baseline, (), sealed=int(config["generations"]))
