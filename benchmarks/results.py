"""The tables of docs/results.md from sealed runs: `python benchmarks/results.py TABLE FOLDER…`.

FOLDER is a run or a sweep. Only finished runs count, at the seeds that all shown arms have.

    comparison   the last generation of every arm, and its change against one of them, paired by seed
    course       the measures of every generation, and their change
    correlation  training-set entropy against log generalization score
    threshold    settings of the threshold filter on the pools of these runs, selected again without training
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from entroloop.data.errors import UserError
from entroloop.eval.report.runs import read_runs
from entroloop.eval.report.tables import encoders
from paper import claims, sensitivity, tables

MEASURES = {"comparison": ["frechet_distance"], "course": ["generalization_score", "training_entropy"]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("comparison", "course", "correlation", "threshold"))
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--against", help="label of the arm to compare with (the first one)")
    parser.add_argument("--measures", nargs="+", help="shown in every encoder")
    parser.add_argument("--arms", nargs="+", help="only these labels")
    options = parser.parse_args(arguments)
    try:
        print(table(options))
    except UserError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 2
    return 0


def table(options: argparse.Namespace) -> str:
    runs = read_runs(options.folders)
    groups = claims.finished_arms(runs, options.arms or ())
    names = encoders(runs)
    if options.table == "correlation":
        return tables.correlations(groups, names)
    if options.table == "threshold":
        return sensitivity.threshold_table([run for arm in groups for run in arm.runs])
    measures = options.measures or MEASURES[options.table]
    columns = [(encoder, m) for m in measures for encoder in (names if m != "real_share" else [""])]
    if options.table == "course":
        return tables.course(groups, columns)
    base = claims.named(groups, options.against) if options.against else groups[0]
    return tables.comparison(groups, base, columns)


if __name__ == "__main__":
    sys.exit(main())
