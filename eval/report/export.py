"""The numbers of a report as CSV and JSON.

[Run]  ->  records  ->  text
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from entroloop.eval.printed import csv_text
from entroloop.eval.report import statistics, tables
from entroloop.eval.report.arms import arms
from entroloop.eval.report.headline import headline
from entroloop.eval.report.runs import Run, for_people


def as_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One record per run, generation, encoder and measure; baselines have no generation.

    Shares of the training set by origin, such as `provenance.real` and `provenance.0`, have no encoder.
    """
    labels = _labels(runs)
    records = []
    for run in runs:
        about = {
            "run": run.name,
            "arm": labels[id(run)],
            "strategy": run.strategy,
            "paradigm": run.paradigm,
            "seed": run.seed,
        }
        for row in [*run.rows, *([run.baseline] if run.baseline else [])]:
            kind = "baseline" if row is run.baseline else "generated"
            at = {"kind": kind, "generation": row.generation}
            sizes = {key: getattr(row.context, key) for key in ("n_generated", "n_training", "n_reference")}
            for origin, share in row.provenance.items():
                records.append({**about, **at, "measure": f"provenance.{origin}", "value": share, **sizes})
            for encoder, values in row.measures.items():
                one = row.encoder(encoder)
                ks = {**one.k, "training_entropy": one.entropy_k}
                behind = {
                    **sizes, "entropy_n": one.entropy_n, "measure_seed": row.context.seed, "encoder_digest": one.digest,
                }  # fmt: skip
                for measure, value in {**values, "real_share": row.value(encoder, "real_share")}.items():
                    of = {"encoder": encoder, "measure": measure, "value": value, "k": ks.get(measure)}
                    records.append({**about, **at, **of, **behind})
    return records


def _labels(runs: Sequence[Run]) -> dict[int, str]:
    return {id(run): arm.label for arm in arms(runs) for run in arm.runs}


def as_csv(runs: Sequence[Run]) -> str:
    """Long form: one line per value, with its run, generation, encoder, measure, sizes, k, seed and encoder digest."""
    columns = (
        "run", "arm", "strategy", "paradigm", "seed", "kind", "generation", "encoder", "measure", "value", "k",
        "n_generated", "n_training", "n_reference", "entropy_n", "measure_seed", "encoder_digest",
    )  # fmt: skip
    return csv_text(columns, as_records(runs))


def _headline(runs: Sequence[Run]) -> list[str]:
    names = tables.encoders(runs)
    return headline(arms(runs), tables.score_encoder(names), tables.distance_encoder(runs, names))


def as_json(runs: Sequence[Run]) -> str:
    """The headline, correlations, and every row of every run with its context and the label of its arm."""
    names, groups, labels = tables.encoders(runs), arms(runs), _labels(runs)
    found = {
        name: statistics.correlation([c for arm in groups for c in statistics.entropy_and_score(arm.runs, name)])
        for name in names
        if len(statistics.entropy_sizes(runs)) < 2
    }
    summary = {
        "headline": _headline(list(map(for_people, runs))) if names else [],
        "correlation": {name: vars(one) if one else None for name, one in found.items()},
        "runs": [
            {
                "name": run.name,
                "arm": labels[id(run)],
                "config": json.loads(json.dumps(run.config, default=str), parse_constant=str),  # infinity as text
                "rows": [row.as_dict() for row in run.rows],
                "finished": run.finished,
            }
            for run in runs
        ],
    }
    return json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
