"""The tables of docs/results.md from sealed runs: `python benchmarks/results.py TABLE FOLDER…`.

FOLDER is a run, a sweep, or a file of packed rows in docs/results. Only finished runs count.

    strategies   arms at one sampler (--sampler), Fréchet distances against random, paired by seed
    dose         what greedy keeps, and Fréchet distances, by the spread gap of generation 0
    verdicts     the claims of the study of the spread gap
    pack         the rows of finished runs, made by the code of --commit, as one file for docs/results

The others count only the seeds that all shown arms have:

    comparison   the last generation of every arm, and its change against one of them, paired by seed
    course       the measures of every generation, and their change
    correlation  training-set entropy against log generalization score
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from entroloop.data.errors import UserError
from entroloop.eval.report.runs import read_runs
from entroloop.eval.report.tables import encoders
from paper import claims, rows, study, tables

STUDY = ("strategies", "dose", "verdicts")
MEASURES = {"comparison": ["frechet_distance"], "course": ["generalization_score", "training_entropy"]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=(*STUDY, "pack", "comparison", "course", "correlation"))
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--against", help="label of the arm to compare with (the first one)")
    parser.add_argument("--measures", nargs="+", help="shown in every encoder")
    parser.add_argument("--sampler", default=study.UNDER, help=f"as in {study.UNDER!r}")
    parser.add_argument("--commit", default="", help="for pack")
    parser.add_argument("--arms", nargs="+", help="only these labels")
    options = parser.parse_args(arguments)
    try:
        print(table(options), end="" if options.table == "pack" else "\n")
    except UserError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 2
    return 0


def table(options: argparse.Namespace) -> str:
    runs = [run for path in options.folders for run in (rows.unpacked(path) if path.is_file() else read_runs([path]))]
    runs = [run for run in runs if run.finished]
    match options.table:
        case "pack":
            return rows.packed(runs, options.commit)
        case "strategies":
            return study.strategies(runs, options.sampler)
        case "dose":
            return study.dose(runs)
        case "verdicts":
            return study.verdicts(runs)
    groups = claims.finished_arms(runs, options.arms or ())
    names = encoders(runs)
    if options.table == "correlation":
        return tables.correlations(groups, names)
    measures = options.measures or MEASURES[options.table]
    columns = [(encoder, m) for m in measures for encoder in (names if m != "real_share" else [""])]
    if options.table == "course":
        return tables.course(groups, columns)
    base = claims.named(groups, options.against) if options.against else groups[0]
    return tables.comparison(groups, base, columns)


if __name__ == "__main__":
    sys.exit(main())
