"""The rows of `measure` as text, JSON, CSV, LaTeX and Markdown.

path of a generated set -> row  ->  printed  ->  text
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from entroloop.eval.catalogue import space, title
from entroloop.eval.report.statistics import number

HASH = 16  # digits shown of a hash
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "%&#_${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)

Row = Mapping[str, Any]


def printed(rows: Mapping[str, Row], form: str, *, several: bool) -> str:
    """The rows as `text`, `json`, `csv`, `latex` or `markdown`, without the last newline.

    several  whether the sets are told apart by path, also if there is only one: JSON is then {"sets": {path: row}}
    """
    if form == "json":
        what = {"sets": rows} if several else next(iter(rows.values()))
        return json.dumps(what, allow_nan=False, ensure_ascii=False)
    if form == "csv":
        return _csv(rows)
    if form == "text":
        return _text(rows, several)
    names, cells = _table(rows)
    joined = [[f"{value}{' ' if spread else ''}{spread.strip()}" for value, spread in line] for line in cells]
    if form == "markdown":
        table = [["measure", *(path.replace("|", "\\|") for path in rows)], ["---", *["---:"] * len(rows)]]
        table += [[name, *line] for name, line in zip(names, joined, strict=True)]
        return "\n".join(f"| {' | '.join(line)} |" for line in table)
    head = " & ".join(["measure", *(path.translate(_LATEX) for path in rows)])
    lines = [
        " & ".join([name.translate(_LATEX), *(cell.replace("\N{MINUS SIGN}", "$-$") for cell in line)])
        for name, line in zip(names, joined, strict=True)
    ]
    return "\n".join(
        [f"\\begin{{tabular}}{{l{'r' * len(rows)}}}", "\\hline", f"{head} \\\\", "\\hline"]
        + [f"{line} \\\\" for line in lines]
        + ["\\hline", "\\end{tabular}"]
    )


def measures_of(row: Row) -> list[str]:
    return [name for name in row if name != "context"]


def _intervals(row: Row) -> Mapping[str, Sequence[float | None]]:
    found: Mapping[str, Sequence[float | None]] = row["context"].get("bootstrap", {}).get("intervals", {})
    return found


def _table(rows: Mapping[str, Row]) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Titles of the measures, and for each the value of every set and its spread: an interval or a range, or none."""
    first = next(iter(rows.values()))
    names = measures_of(first)

    def cell(row: Row, name: str) -> tuple[str, str]:
        between = _intervals(row).get(name, ())
        halves = row["context"].get("resampled", {}).get("ranges", {}).get(name, ())
        told = f" [{', '.join(map(number, between))}]" if between else ""
        return number(row[name]), told + (f"   {' … '.join(map(number, halves))}" if halves else "")

    titles = [title(name, first["context"]["encoder"]) for name in names]
    return titles, [[cell(row, name) for row in rows.values()] for name in names]


def _csv(rows: Mapping[str, Row]) -> str:
    """Long form: one line per set and measure, with its interval, encoder, sizes, k and seed. Empty: undefined."""
    columns = (
        "set", "encoder", "measure", "value", "low", "high", "k", "n_generated", "n_training", "n_reference",
        "entropy_n", "measure_seed", "encoder_digest",
    )  # fmt: skip
    records = []
    for path, row in rows.items():
        of = row["context"]
        ks = {**of["k"], "training_entropy": of["entropy_k"], "generated_entropy": of["entropy_k"]}
        sizes = {name: of[name] for name in ("n_generated", "n_training", "n_reference", "entropy_n")}
        behind = {"encoder": of["encoder"], "measure_seed": of["seed"], "encoder_digest": of["encoder_digest"], **sizes}
        for name in measures_of(row):
            low, high = _intervals(row).get(name, (None, None))
            value = {"measure": name, "value": row[name], "low": low, "high": high, "k": ks.get(name)}
            records.append({"set": path, **value, **behind})
    return csv_text(columns, records).rstrip("\n")


def csv_text(columns: Sequence[str], records: Iterable[Row]) -> str:
    """One line per record, after the line of columns; a value that a record lacks is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _text(rows: Mapping[str, Row], several: bool) -> str:
    """An aligned table for people: a line per measure, a column per set."""
    first = next(iter(rows.values()))
    names, cells = _table(rows)
    spreads = [max(len(line[i][1]) for line in cells) for i in range(len(rows))]
    lines = [[f"{value:>10}{spread:<{w}}" for (value, spread), w in zip(line, spreads, strict=True)] for line in cells]
    if several:
        names, lines = ["", *names], [list(rows), *lines]
    widths = [max(map(len, names)), *(max(len(line[i]) for line in lines) for i in range(len(rows)))]
    aligned = [
        f"{name:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths[1:], strict=True))
        for name, line in zip(names, lines, strict=True)
    ]
    out = [line.rstrip() for line in aligned]
    told = [_in_one_line(row["context"]) for row in rows.values()]
    out += [f"{path}: {line}" for path, line in zip(rows, told, strict=True)] if several else told
    context = first["context"]
    if context["n_reference"]:
        out.append(
            "Distances, spread gap, precision, recall, density and coverage compare with the reference set; "
            "the scores of memorization and generalization compare with the training set."
        )
    else:
        out.append("All measures compare with the training set.")
    if context["mirrored_copies_count"]:
        out.append("Mirrored copies of training images count as copies.")
    if context["resize"]:
        out.append(f"Resized to {context['resolution']} pixels per side: {context['resize']}.")
    return "\n".join(out)


def _in_one_line(context: Mapping[str, Any]) -> str:
    """All that the numbers depend on: sizes, encoder, weights, resize, k and seed. Hashes are cut to HASH digits."""
    sizes = [f"{context[f'n_{name}']} {name}" for name in ("generated", "training", "reference")]
    hashes = [f"{name} SHA-256 {sha256[:HASH]}…" for name, sha256 in (context["encoder_weights"] or {}).items()]
    none = "no weights" if context["encoder_weights"] is not None else "weights in the digest only"
    where = space(context["encoder"], len(context["sample_shape"]) == 1)
    ks = {**context["k"], "entropy": context["entropy_k"]}
    parts = [
        ", ".join(sizes if context["n_reference"] else sizes[:2]),
        f"{where} features, digest {context['encoder_digest'][:HASH]}…",
        f"weights {', '.join(hashes)}" if hashes else none,
        f"resize {context['encoder_resize']}",
        f"k {', '.join(f'{name} {k}' for name, k in ks.items())}",
        f"seed {context['seed']}",
    ]
    return "; ".join(parts)
