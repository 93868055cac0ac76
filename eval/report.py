"""One self-contained page for one or many runs, and the same numbers as CSV, JSON and PNG.

    run folders  ->  read_runs, arms  ->  write_html | write_csv | write_json | write_pngs

The page holds everything it needs (plots and images as data URIs) and opens offline; without scripts it loses only the
plot in which any measure can be set against any other.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from entroloop.data import files
from entroloop.eval import analysis, pictures, plots
from entroloop.eval.catalogue import HEADLINE, MEASURES, title
from entroloop.eval.runs import Arm, Run, arms, differences, read_runs, row_value

FORMATS = ("html", "csv", "json", "png")


@dataclass(frozen=True)
class Picture:
    """A figure on the page: data URI, alternative text, caption and a name for files."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(plots.svg(self.figure)).decode()


def write(folders: Sequence[Path], out: Path, form: str = "html", *, refresh: int | None = None) -> list[Run]:
    """Writes the report of all runs in these run and sweep folders; returns the runs.

    out      the file, for `png` a folder
    refresh  seconds after which the page loads itself again (html only)
    Raises UserError when a folder holds no run or something in it is damaged.
    """
    runs = read_runs(folders)
    if form == "png":
        for picture in figures(runs):
            content = plots.png(picture.figure)
            files.replace(out / f"{picture.name}.png", lambda file, c=content: file.write(c))  # type: ignore[misc]
        return runs
    text = {"html": lambda: html(runs, refresh=refresh), "csv": lambda: as_csv(runs), "json": lambda: as_json(runs)}
    content = text[form]().encode()
    files.replace(out, lambda file: file.write(content))
    return runs


def state(folders: Sequence[Path]) -> Any:
    """Changes whenever a report of these folders would: which generations are measured and what was sampled."""
    runs = read_runs(folders)
    return [(run.folder, len(run.rows), len(run.stats), sorted(_sampled([run]))) for run in runs]


def encoders(runs: Sequence[Run]) -> list[str]:
    """All encoders with measures, in the order of the rows."""
    return list(dict.fromkeys(name for run in runs for row in run.rows for name in row["measures"]))


def score_encoder(names: Sequence[str]) -> str:
    """Where nearest-neighbour scores are read: pixels if measured."""
    return "pixel" if "pixel" in names else names[0]


def distance_encoder(names: Sequence[str]) -> str:
    """Where distributions are compared: the first encoder that is not the raw pixels, if there is one."""
    return next((name for name in names if name != "pixel"), names[0])


def measures_of(runs: Sequence[Run], encoder: str) -> list[str]:
    """The measures that some row has in this encoder, in the catalogue's order, others after them."""
    found = {m for run in runs for row in run.rows for m in row["measures"].get(encoder, {})}
    return [*(m for m in MEASURES if m in found), *sorted(found - MEASURES.keys())]


def main_figures(runs: Sequence[Run]) -> list[Picture]:
    """What a reader needs first: distance to held-out data, generalization score and entropy."""
    names = encoders(runs)
    if not names:
        return []
    chosen = {
        "frechet_distance": distance_encoder(names),
        "generalization_score": score_encoder(names),
        "training_entropy": score_encoder(names),
    }
    return list(_curves(runs, [(chosen[measure], measure) for measure in HEADLINE]))


def figures(runs: Sequence[Run]) -> list[Picture]:
    """Every figure of the report."""
    names = encoders(runs)
    curves = [(name, measure) for name in names for measure in measures_of(runs, name)]
    return [*_curves(runs, curves), *_overview(runs, names)]


def _curves(runs: Sequence[Run], wanted: Iterable[tuple[str, str]]) -> Iterator[Picture]:
    groups = arms(runs)
    for encoder, measure in wanted:
        figure = plots.measure_curves(groups, runs, encoder, measure)
        if figure is not None:
            about = MEASURES[measure].text if measure in MEASURES else ""
            yield Picture(f"{measure}-{_slug(encoder)}", figure, _curve_words(groups, encoder, measure), about)


def _overview(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Picture]:
    groups = arms(runs)
    for name in names:
        scatter = plots.entropy_scatter(groups, name)
        if scatter is not None:
            yield Picture(f"entropy-score-{_slug(name)}", scatter, _scatter_words(groups, name))
    for name in names:
        spectrum = plots.spectra(groups, name)
        if spectrum is not None:
            alt = f"Line charts of the leading covariance eigenvalues in {name} features, one line a generation."
            yield Picture(f"spectra-{_slug(name)}", spectrum, alt)
    areas = plots.provenance_areas(groups)
    if areas is not None:
        yield Picture("provenance", areas, _provenance_words(groups))
    time = plots.costs(runs)
    if time is not None:
        yield Picture("time", time, "Bar chart of seconds spent by phase in each run; the table below has the numbers.")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in name)


def _curve_words(groups: Sequence[Arm], encoder: str, measure: str) -> str:
    parts = []
    for arm in groups:
        line = analysis.curve(arm, encoder, measure)
        if line.generations:
            ends = f"{analysis.number(line.mean[0])} to {analysis.number(line.mean[-1])}"
            parts.append(f"{arm.label} from {ends} (generation {line.generations[0]} to {line.generations[-1]})")
    return f"Line chart of {title(measure)} in {encoder} features by generation: {'; '.join(parts)}."


def _scatter_words(groups: Sequence[Arm], encoder: str) -> str:
    found = analysis.correlation([c for arm in groups for c in analysis.entropy_and_score(arm.runs, encoder)])
    words = f"Pearson r {analysis.number(found.r)} over {found.n} points" if found else "too few points to correlate"
    return f"Scatter plot of training-set entropy against log generalization score in {encoder} features: {words}."


def _provenance_words(groups: Sequence[Arm]) -> str:
    parts = []
    for arm in groups:
        if arm.generations:
            share = np.mean(arm.values(arm.generations[-1], "", "real_share"))
            parts.append(f"{arm.label} has {share:.0%} real images at generation {arm.generations[-1]}")
    return f"Stacked bars of where each training set's images come from: {'; '.join(parts)}."


def html(runs: Sequence[Run], *, refresh: int | None = None) -> str:
    """The page, as one string."""
    names, groups = encoders(runs), arms(runs)
    score, distance = (score_encoder(names), distance_encoder(names)) if names else ("", "")
    first = main_figures(runs)
    shown = {picture.name for picture in first}
    others = {
        name: [p for p in _curves(runs, [(name, m) for m in measures_of(runs, name)]) if p.name not in shown]
        for name in names
    }
    overview = list(_overview(runs, names))
    by_kind = {
        kind: [p for p in overview if p.name.startswith(kind)]
        for kind in ("entropy-score", "spectra", "provenance", "time")
    }
    generations = sorted({g for arm in groups for g in arm.generations} | _sampled(runs))
    chosen = pictures.shown_runs(groups)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["number"] = analysis.number
    environment.filters["png"] = _png_uri
    return environment.get_template("report.html.j2").render(
        title=_title(runs),
        refresh=refresh,
        headline=analysis.headline(groups, score, distance),
        certainty=analysis.certainty(groups, score, distance),
        unfinished=[run for run in runs if not run.finished],
        runs=runs,
        groups=groups,
        many_seeds=any(len(arm.runs) > 1 for arm in groups),
        swatches=plots.styles(groups),
        main=first,
        others=others,
        by_kind=by_kind,
        generations=generations,
        strips=pictures.sample_strips(chosen, generations),
        strip_runs=chosen,
        common_seed=pictures.common_seed(groups),
        pairs={label: pairs for label, run in chosen.items() if (pairs := pictures.nearest_pairs(run, len(chosen)))},
        tables=[_last_table(runs, groups, name) for name in names],
        everything=[_full_table(groups, name, measures_of(runs, name)) for name in names],
        costs=_cost_table(runs),
        differences=_difference_table(runs),
        environments=_environments(runs),
        context=_context(runs),
        about=MEASURES,
        explorer=Markup(_script_json(_explorer(runs, groups, names))),
    )


def _title(runs: Sequence[Run]) -> str:
    """The run's name, or the folder that all runs lie in."""
    if len(runs) == 1:
        return f"{runs[0].name} · entroloop"
    parents = {run.folder.resolve().parent.name for run in runs}
    names = parents if len(parents) == 1 else {run.name for run in runs}
    return f"{', '.join(sorted(names)[:3])} · {len(runs)} runs · entroloop"


def _sampled(runs: Sequence[Run]) -> set[int]:
    return {int(path.parent.name[-4:]) for run in runs for path in run.folder.glob("generation_*/samples")}


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _script_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


def _last_table(runs: Sequence[Run], groups: Sequence[Arm], encoder: str) -> dict[str, Any]:
    """Measures at the last generation that every arm has: a line a measure, a column an arm."""
    last = analysis.last_common(groups)
    shown = [arm for arm in groups if last in arm.generations]
    lines = []
    for measure in [*measures_of(runs, encoder), "real_share"]:
        base = analysis.number(plots.baseline_value(runs, encoder, measure))
        lines.append((measure, base, [_with_spread(arm.values(last or 0, encoder, measure)) for arm in shown]))
    return {"encoder": encoder, "generation": last, "arms": [arm.label for arm in shown], "lines": lines}


def _with_spread(values: Sequence[float]) -> str:
    if not values:
        return analysis.number(None)
    mean = analysis.number(float(np.mean(values)))
    return mean if len(values) < 2 else f"{mean} ± {analysis.number(float(np.std(values, ddof=1)))}"


def _full_table(groups: Sequence[Arm], encoder: str, names: Sequence[str]) -> dict[str, Any]:
    lines = [
        (arm.label, generation, [_with_spread(arm.values(generation, encoder, m)) for m in [*names, "real_share"]])
        for arm in groups
        for generation in arm.generations
    ]
    return {"encoder": encoder, "measures": [*names, "real_share"], "lines": lines}


def _cost_table(runs: Sequence[Run]) -> dict[str, Any]:
    phases = list(dict.fromkeys(line["phase"] for run in runs for line in run.stats if "phase" in line))
    lines = []
    for run in runs:
        seconds = [plots.spent(run, phase, "seconds") for phase in phases]
        calls = sum(plots.spent(run, phase, "nfe") for phase in phases)
        lines.append(
            (
                run.name,
                [f"{s:,.1f}" for s in seconds],
                f"{sum(seconds):,.1f}",
                f"{calls:,.0f}" if calls else analysis.number(None),
            )
        )
    return {"phases": phases, "lines": lines if phases else []}


def _difference_table(runs: Sequence[Run]) -> dict[str, list[str]]:
    return {
        key: [analysis.number(None) if v is None else str(v) for v in values]
        for key, values in differences(runs).items()
    }


def _environments(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What made the runs: every fact under `numerics` in the unsealed statistics, with all its values."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for line in run.stats:
            for key, value in (line.get("numerics") or {}).items():
                values = found.setdefault(str(key), [])
                if str(value) not in values:
                    values.append(str(value))
    return [(key, " | ".join(values)) for key, values in sorted(found.items())]


def _context(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """N, k, seed and weights behind the numbers: one line an encoder, from the last row of the first run."""
    rows = [row for run in runs for row in run.rows[-1:]]
    if not rows:
        return []
    context = rows[0].get("context", {})
    sizes = [f"{key} {value}" for key, value in context.items() if isinstance(value, int | float)]
    lines = [("all encoders", sizes)]
    for name, one in context.get("encoders", {}).items():
        lines.append((name, [f"{key} {_brief(value)}" for key, value in one.items() if key != "top_eigenvalues"]))
    return lines


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return (
        str(value)[:16]
        if isinstance(value, str)
        else analysis.number(value)
        if isinstance(value, float)
        else str(value)
    )


def _explorer(runs: Sequence[Run], groups: Sequence[Arm], names: Sequence[str]) -> dict[str, Any]:
    """Numbers for the plot of any measure against any other: a point a generation of each run."""
    looks = plots.styles(groups)
    columns = [(name, m) for name in names for m in measures_of(runs, name)]
    return {
        "axes": ["generation", "real_share", *(f"{m} · {name}" for name, m in columns)],
        "titles": ["generation", title("real_share"), *(f"{title(m)} · {name}" for name, m in columns)],
        "start": [
            _position(columns, "training_entropy", score_encoder),
            _position(columns, "generalization_score", score_encoder),
        ],
        "arms": [
            {
                "label": arm.label,
                "colour": looks[arm.label].colour,
                "runs": [
                    [
                        [
                            row["generation"],
                            row_value(row, "", "real_share"),
                            *(_short(row_value(row, *c)) for c in columns),
                        ]
                        for row in run.rows
                    ]
                    for run in arm.runs
                ],
            }
            for arm in groups
        ],
    }


def _position(columns: Sequence[tuple[str, str]], measure: str, prefer: Any) -> int:
    names = [name for name, m in columns if m == measure]
    return 2 + columns.index((prefer(names), measure)) if names else 0


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def as_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One record a run, generation, encoder and measure; baselines have no generation."""
    labels = {id(run): arm.label for arm in arms(runs) for run in arm.runs}
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
            for encoder, values in row["measures"].items():
                for measure, value in {**values, "real_share": row_value(row, encoder, "real_share")}.items():
                    at = {"kind": kind, "generation": row["generation"], "encoder": encoder}
                    records.append({**about, **at, "measure": measure, "value": value})
    return records


def as_csv(runs: Sequence[Run]) -> str:
    """Long form: run, arm, strategy, paradigm, seed, kind, generation, encoder, measure, value."""
    columns = ("run", "arm", "strategy", "paradigm", "seed", "kind", "generation", "encoder", "measure", "value")
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_records(runs))
    return out.getvalue()


def as_json(runs: Sequence[Run]) -> str:
    """The headline, correlations, and every row of every run with its context."""
    names, groups = encoders(runs), arms(runs)
    found = {
        name: analysis.correlation([c for arm in groups for c in analysis.entropy_and_score(arm.runs, name)])
        for name in names
    }
    summary = {
        "headline": analysis.headline(groups, score_encoder(names), distance_encoder(names)) if names else [],
        "correlation": {name: vars(one) if one else None for name, one in found.items()},
        "runs": [{"name": run.name, "config": run.config, "rows": run.rows, "finished": run.finished} for run in runs],
    }
    return json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
