"""One self-contained page for one or many runs, and the same numbers as CSV, JSON and PNG.

    run folders  ->  read_runs, arms  ->  write_html | write_csv | write_json | write_pngs

The page contains everything it needs (plots and images as data URIs) and opens offline. Without scripts, only the plot
of any measure against any other is missing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from entroloop.data import files
from entroloop.data.errors import UserError, unusable
from entroloop.data.store.shards import REAL
from entroloop.eval.catalogue import HEADLINE, SHOWN, title
from entroloop.eval.report import export, headline, pictures, statistics, style, tables, verdicts
from entroloop.eval.report.arms import arms, comparable, differences
from entroloop.eval.report.figures import curves, figures, main_figures, overview
from entroloop.eval.report.runs import Run, for_people, read_runs

_RELOAD = re.compile(r'^<meta http-equiv="refresh" content="\d+">\n', re.MULTILINE)
FORMATS = ("html", "csv", "json", "png")


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
            files.put(out / f"{picture.name}.png", style.png(picture.figure))
        return runs
    text = {
        "html": lambda: html(shown, refresh=refresh),
        "csv": lambda: export.as_csv(runs),
        "json": lambda: export.as_json(runs),
    }
    files.put(out, text[form]().encode())
    return runs


def stop_reloading(out: Path) -> None:
    """Takes the line out of a written page that makes a browser reload the page."""
    if out.is_file():
        text = out.read_text()
        files.put(out, _RELOAD.sub("", text, count=1).encode())


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


def html(runs: Sequence[Run], *, refresh: int | None = None) -> str:
    """The page, as one string."""
    names, groups = tables.encoders(runs), arms(runs)
    score, distance = tables.score_encoder(names), tables.distance_encoder(runs, names)
    first = main_figures(runs)
    shown = {picture.name for picture in first}
    # At most two encoders, those of the headline first: a page with all plots of four is too large to mail.
    full = list(dict.fromkeys((score, distance, *names)))[:2]
    wanted = {name: tables.measures_of(runs, name) if name in full else HEADLINE for name in names}
    others = {
        name: [p for p in curves(runs, [(name, m) for m in wanted[name]]) if p.name not in shown] for name in names
    }
    further = list(overview(runs, names, full))
    by_kind = {
        kind: [p for p in further if p.name.startswith(kind)]
        for kind in ("points", "entropy-score", "spectra", "provenance", "loss", "radii", "time")
    }
    generations = sorted({g for arm in groups for g in arm.generations} | _sampled(runs))
    chosen = pictures.shown_runs(comparable(groups).groups)
    strips = pictures.sample_strips(chosen, generations)
    template = templates().get_template("page.html.j2")
    page = template.render(
        title=title_of(runs),
        refresh=refresh,
        headline=headline.headline(groups, score, distance),
        certainty=headline.certainty(groups, distance),
        unfinished=[run for run in runs if not run.finished],
        runs=runs,
        groups=groups,
        many_seeds=any(len(arm.runs) > 1 for arm in groups),
        swatches=style.styles(groups),
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
        differences=differences(runs),
        environments=tables.environments(runs),
        context=tables.context(groups),
        base_sizes=tables.baseline_sizes(runs),
        about=SHOWN,
        measure_title=title,
        direction=verdicts.direction,
        explorer=tables.explorer(runs, groups, names),
    )
    return for_vectors(page) if by_kind["points"] and not strips else page


def templates() -> jinja2.Environment:
    """The templates of this folder with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["number"] = statistics.number
    environment.filters["png"] = _png_uri
    return environment


def for_vectors(page: str) -> str:
    """The page for runs on vectors: "image" becomes "vector" in text and alternative texts."""

    def say(text: str) -> str:
        text = re.sub(r"\b(a)n image\b", r"\1 vector", text, flags=re.IGNORECASE)
        return re.sub(r"\bimage(s?)\b", r"vector\1", re.sub(r"\bImage(s?)\b", r"Vector\1", text))

    parts = re.split(r"(<style>.*?</style>|<script\b.*?</script>|<[^>]*>)", page, flags=re.DOTALL)
    parts[::2] = map(say, parts[::2])
    parts[1::2] = [re.sub(r'(alt|title|aria-label)="[^"]*"', lambda found: say(found[0]), tag) for tag in parts[1::2]]
    return "".join(parts)


def title_of(runs: Sequence[Run]) -> str:
    """The name of a single run, else the folders that contain the runs."""
    if len(runs) == 1:
        return f"{runs[0].name} · entroloop"
    parents = sorted({run.folder.resolve().parent.name for run in runs})
    return f"{', '.join(parents[:3])}{', …' if len(parents) > 3 else ''} · {len(runs)} runs · entroloop"


def _sampled(runs: Sequence[Run]) -> set[int]:
    return {int(path.parent.name[-4:]) for run in runs for path in run.folder.glob("generation_*/samples")}


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
