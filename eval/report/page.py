"""One self-contained page for one or many runs, and the same numbers as CSV, JSON and PNG.

    run folders  ->  read_runs, arms  ->  write_html | write_csv | write_json | write_pngs

The page contains everything it needs (plots and images as data URIs) and opens offline. Without scripts, only the plot
of any measure against any other is missing.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from entroloop.data import files
from entroloop.data.errors import UserError, unusable
from entroloop.data.store.shards import REAL
from entroloop.eval.catalogue import HEADLINE, SHOWN, title
from entroloop.eval.report import export, headline, pictures, plots, points, progress, statistics, tables, verdicts
from entroloop.eval.report.arms import Arm, arms, comparable
from entroloop.eval.report.runs import Run, for_people, read_runs

_SAFE = " !'()*+,-./:;=?@[]^_{|}~$"  # need no escape in a data URI, nor in HTML between double quotes
FORMATS = ("html", "csv", "json", "png")


@dataclass(frozen=True)
class Picture:
    """A figure on the page: data URI, alternative text, caption and a name for files."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""

    @property
    def uri(self) -> Markup:
        """For an attribute in double quotes; a sixth shorter than base64."""
        text = re.sub(r"<[^>']*>", lambda tag: tag[0].replace('"', "'"), plots.svg(self.figure).decode())
        return Markup("data:image/svg+xml," + urllib.parse.quote(text, safe=_SAFE))


def write(folders: Sequence[Path], out: Path, form: str = "html", *, refresh: int | None = None) -> list[Run]:
    """Writes the report of all runs in these run and sweep folders; returns the runs.

    out      the file; for `png`, a folder
    refresh  seconds after which the page reloads itself (html only)
    Raises UserError when a folder holds no run, something in it is damaged, or `out` cannot be written.
    """
    runs = read_runs(folders)
    make_room(out, form)
    shown = list(map(for_people, runs))
    if form == "png":
        for picture in figures(shown):
            files.put(out / f"{picture.name}.png", plots.png(picture.figure))
        return runs
    text = {
        "html": lambda: html(shown, refresh=refresh),
        "csv": lambda: export.as_csv(runs),
        "json": lambda: export.as_json(runs),
    }
    files.put(out, text[form]().encode())
    return runs


def make_room(out: Path, form: str) -> None:
    """Makes the folder that a report is written into. Raises UserError when no report can be written to `out`."""
    folder = out if form == "png" else out.parent
    try:
        if form != "png" and out.is_dir():
            raise UserError(f"{out}: is a folder; give a file name such as {out / f'report.{form}'}")
        above = next(place for place in (folder, *folder.parents) if place.exists())
        if not above.is_dir():
            raise UserError(f"{out}: {'' if above == out else f'{above} '}is a file; give a path in a folder")
    except OSError as error:
        raise unusable(error, out) from error
    files.check_place(out / "figure.png" if form == "png" else out, out)


def state(folders: Sequence[Path]) -> Any:
    """A value that changes whenever the report of these folders would change: generations measured and sampled."""
    runs = read_runs(folders)
    return [(run.folder, run.done, len(run.stats), run.failed, sorted(_sampled([run]))) for run in runs]


def main_figures(runs: Sequence[Run]) -> list[Picture]:
    """The figures a reader needs first: distance to held-out data, generalization score and entropy."""
    names = tables.encoders(runs)
    if not names:
        return []
    chosen = {
        "frechet_distance": tables.distance_encoder(runs, names),
        "generalization_score": tables.score_encoder(names),
        "training_entropy": tables.score_encoder(names),
    }
    return list(_curves(runs, [(chosen[measure], measure) for measure in HEADLINE]))


def figures(runs: Sequence[Run]) -> list[Picture]:
    """Every figure of the report."""
    names = tables.encoders(runs)
    curves = [(name, measure) for name in names for measure in tables.measures_of(runs, name)]
    return [*_curves(runs, curves), *_overview(runs, names)]


def _curves(runs: Sequence[Run], wanted: Iterable[tuple[str, str]]) -> Iterator[Picture]:
    groups = arms(runs)
    for encoder, measure in wanted:
        figure = plots.measure_curves(groups, runs, encoder, measure)
        if figure is not None:
            about = SHOWN[measure].reading if measure in SHOWN else ""
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
            alt = f"Line charts of the leading covariance eigenvalues in {name} features, up to five generations."
            yield Picture(f"spectra-{_slug(name)}", spectrum, alt)
    yield from _points(groups)
    areas = plots.provenance_areas(groups)
    if areas is not None:
        yield Picture("provenance", areas, _provenance_words(groups))
    curves = progress.losses(groups)
    if curves is not None:
        alt = (
            "Line charts of the training loss against images trained on, up to five generations of one run of each arm."
        )
        yield Picture("loss", curves, alt)
    radii = progress.radii(groups)
    if radii is not None:
        encoders = " and ".join(headline.selecting_encoders(runs)) or "the selection's"
        about = (
            "Distance of a chosen candidate to the nearest one chosen before: the median of each selection, the mean "
            f"over runs. Distances are those of the selection, in {encoders} features, and are comparable between arms "
            "that select with the same encoder and metric."
        )
        yield Picture("radii", radii, "Line chart of the median radius of selection by generation.", about)
    time = progress.costs(runs)
    if time is not None:
        yield Picture("time", time, "Bar chart of seconds spent by phase in each run; the table below has the numbers.")


def _points(groups: Sequence[Arm]) -> Iterator[Picture]:
    """Training sets and samples of runs on vectors, one figure per arm."""
    for label, run in pictures.shown_runs(groups).items():
        found, features = points.clouds(run)
        if not found:
            continue
        first, last = found[0].generation, found[-1].generation
        alt = f"Scatter plots of training sets and samples, generations {first} to {last}, {label}."
        shown = "the two features" if features == 2 else f"two principal components of {features} features"
        beyond = points.outside(found)
        caption = f"{label}: {shown}; the axes extend a quarter beyond the range of generation 0's training set."
        if any(len(cloud.rejected) for cloud in found):
            caption += " Candidates that were rejected for a training set are orange."
        if beyond:
            caption += f" {beyond} of {len(found[-1].samples)} samples of generation {last} are outside the axes."
        yield Picture(f"points-{_slug(label)}", points.scatter(found), alt, caption)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in name)


def _curve_words(groups: Sequence[Arm], encoder: str, measure: str) -> str:
    parts = []
    for arm in comparable(groups).measured:
        line = statistics.curve(arm, encoder, measure)
        if line.generations:
            ends = f"{statistics.number(line.mean[0])} to {statistics.number(line.mean[-1])}"
            parts.append(f"{arm.label} from {ends} (generation {line.generations[0]} to {line.generations[-1]})")
    return f"Line chart of {title(measure, encoder)} in {encoder} features by generation: {'; '.join(parts)}."


def _scatter_words(groups: Sequence[Arm], encoder: str) -> str:
    found = statistics.correlation([c for arm in groups for c in statistics.entropy_and_score(arm.runs, encoder)])
    words = f"Pearson r {statistics.number(found.r)} over {found.n} points" if found else "too few points to correlate"
    return f"Scatter plot of training-set entropy against log generalization score in {encoder} features: {words}."


def _provenance_words(groups: Sequence[Arm]) -> str:
    parts = []
    for arm in comparable(groups).measured:
        share = np.mean(arm.values(arm.generations[-1], "", "real_share"))
        parts.append(f"{arm.label} has {share:.0%} real images at generation {arm.generations[-1]}")
    return f"Stacked areas of where each training set's images come from: {'; '.join(parts)}."


def html(runs: Sequence[Run], *, refresh: int | None = None) -> str:
    """The page, as one string."""
    names, groups = tables.encoders(runs), arms(runs)
    score, distance = (tables.score_encoder(names), tables.distance_encoder(runs, names)) if names else ("", "")
    first = main_figures(runs)
    shown = {picture.name for picture in first}
    full = _drawn_in_full(runs, names)
    wanted = {name: tables.measures_of(runs, name) if name in full else HEADLINE for name in names}
    others = {
        name: [p for p in _curves(runs, [(name, m) for m in wanted[name]]) if p.name not in shown] for name in names
    }
    overview = [
        p for p in _overview(runs, names) if p.name not in {f"spectra-{_slug(n)}" for n in names if n not in full}
    ]
    by_kind = {
        kind: [p for p in overview if p.name.startswith(kind)]
        for kind in ("points", "entropy-score", "spectra", "provenance", "loss", "radii", "time")
    }
    generations = sorted({g for arm in groups for g in arm.generations} | _sampled(runs))
    chosen = pictures.shown_runs(comparable(groups).groups)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["number"] = statistics.number
    environment.filters["png"] = _png_uri
    strips = pictures.sample_strips(chosen, generations)
    page = environment.get_template("page.html.j2").render(
        title=_title(runs),
        refresh=refresh,
        headline=headline.headline(groups, score, distance),
        certainty=headline.certainty(groups, distance),
        unfinished=[run for run in runs if not run.finished],
        runs=runs,
        groups=groups,
        many_seeds=any(len(arm.runs) > 1 for arm in groups),
        swatches=plots.styles(groups),
        main=first,
        others=others,
        in_part=[name for name in names if name not in full],
        by_kind=by_kind,
        generations=generations,
        strips=strips,
        real=REAL,
        choices=pictures.choices(chosen),
        common_seed=pictures.common_seed(comparable(groups).groups),
        pairs={label: pairs for label, run in chosen.items() if (pairs := pictures.nearest_pairs(run, len(chosen)))},
        tables=[tables.last_table(runs, groups, name) for name in names],
        changes=tables.changes(groups, distance),
        distance_encoder=distance,
        everything={name: tables.full_tables(runs, groups, name) for name in names},
        single_origin=tables.single_origin(groups),
        costs=tables.cost_table(runs),
        differences=tables.difference_table(runs),
        environments=tables.environments(runs),
        context=tables.context(groups),
        base_sizes=tables.baseline_sizes(runs),
        about=SHOWN,
        measure_title=title,
        direction=verdicts.direction,
        explorer=Markup(_script_json(tables.explorer(runs, groups, names))),
    )
    return for_vectors(page) if by_kind["points"] and not strips else page


def _drawn_in_full(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """At most two encoders, those of the headline first: a page with all plots of four is too large to mail."""
    if not names:
        return []
    order = [tables.score_encoder(names), tables.distance_encoder(runs, names), *names]
    return list(dict.fromkeys(order))[:2]


def for_vectors(page: str) -> str:
    """The page for runs on vectors: "image" becomes "vector" in text and alternative texts."""

    def say(text: str) -> str:
        text = re.sub(r"\b(a)n image\b", r"\1 vector", text, flags=re.IGNORECASE)
        return re.sub(r"\bimage(s?)\b", r"vector\1", re.sub(r"\bImage(s?)\b", r"Vector\1", text))

    parts = re.split(r"(<style>.*?</style>|<script\b.*?</script>|<[^>]*>)", page, flags=re.DOTALL)
    parts[::2] = map(say, parts[::2])
    parts[1::2] = [re.sub(r'(alt|title|aria-label)="[^"]*"', lambda found: say(found[0]), tag) for tag in parts[1::2]]
    return "".join(parts)


def _title(runs: Sequence[Run]) -> str:
    """The name of a single run, else the folders that contain the runs."""
    if len(runs) == 1:
        return f"{runs[0].name} · entroloop"
    parents = sorted({run.folder.resolve().parent.name for run in runs})
    return f"{', '.join(parents[:3])}{', …' if len(parents) > 3 else ''} · {len(runs)} runs · entroloop"


def _sampled(runs: Sequence[Run]) -> set[int]:
    return {int(path.parent.name[-4:]) for run in runs for path in run.folder.glob("generation_*/samples")}


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _script_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
