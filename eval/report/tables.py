"""Tables of the report.

[Run] and arms  ->  dicts of strings for the page
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from entroloop.eval.catalogue import RAW, SHOWN, title
from entroloop.eval.measures.row import Context, EncoderContext, Row
from entroloop.eval.report import progress, statistics, style, verdicts
from entroloop.eval.report.arms import Arm, arms, baseline_arm, comparable
from entroloop.eval.report.headline import NAMED, difference, selecting_encoders
from entroloop.eval.report.runs import Run, for_people

# What `context` calls the fields.
_WORDS = {key: field.title for key, field in {**Context.model_fields, **EncoderContext.model_fields}.items()}

ACROSS = 6  # measures side by side in a table of every generation


class Line(NamedTuple):
    """A measure of `last_table`: the real-test-vs-real-train value, a cell per arm, and the best arm's position."""

    measure: str
    base: str
    cells: list[str]
    best: int | None


def encoders(runs: Sequence[Run]) -> list[str]:
    """All encoders with measures, in the order of the rows."""
    return list(dict.fromkeys(name for run in runs for row in run.rows for name in row.measures))


def score_encoder(names: Sequence[str]) -> str:
    """The encoder whose nearest-neighbour scores are shown: the samples as they are if measured, else the first; empty
    without any."""
    return next((name for name in names if name in RAW), names[0] if names else "")


def distance_encoder(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The encoder in whose features distributions are compared: the first one that no run selected with and that is not
    the samples as they are. Without such an encoder, not having selected matters more than not being that."""
    selecting = selecting_encoders(runs)
    return min(names, key=lambda name: (name in selecting, name in RAW), default="")


def measures_of(runs: Sequence[Run], encoder: str) -> list[str]:
    """The measures that any row has in this encoder: in the catalogue's order, then the user's own by name."""
    found = {m for run in runs for row in run.rows for m in row.measures.get(encoder, {})}
    return [*(m for m in SHOWN if m in found), *sorted(found - SHOWN.keys())]


def last_table(runs: Sequence[Run], groups: Sequence[Arm], encoder: str) -> dict[str, Any]:
    """Measures at the last generation that every arm has, over equal seeds: a line per measure, a column per arm."""
    even = comparable(groups)
    last, shown = even.generation, even.measured
    labels = [arm.label for arm in shown]
    lines = []
    for measure in [*measures_of(runs, encoder), "real_share"]:
        base = statistics.number(statistics.baseline_value(runs, encoder, measure))
        cells = [_cell(arm.values(last or 0, encoder, measure)) for arm in shown]
        winner = verdicts.best(shown, last or 0, encoder, measure)
        lines.append(Line(measure, base, cells, labels.index(winner) if winner else None))
    rows = [row for arm in shown for run in arm.runs for row in run.rows if row.generation == last]
    return {
        "encoder": encoder, "generation": last, "arms": labels, "lines": lines,
        "sizes": set_sizes(rows), "base_sizes": baseline_sizes(runs),
    }  # fmt: skip


def summary(runs: Sequence[Run]) -> str:
    """The arms at the last generation that all have, over equal seeds, as a text table; empty before generation 1.

    The columns are the Fréchet distance, that of generation 0, the recall and the share of real training samples.
    """
    runs = list(map(for_people, runs))
    names, even = encoders(runs), comparable(arms(runs))
    if not names or not even.generation:
        return ""
    encoder, last = distance_encoder(runs, names), even.generation
    wanted = [(last, "frechet_distance"), (0, "frechet_distance"), (last, "recall"), (last, "real_share")]
    lines = [["arm", "Fréchet distance", "at generation 0", "recall", "share of real"]]
    for arm in even.measured:
        values = [arm.values(generation, encoder, measure) for generation, measure in wanted]
        lines.append([arm.label, *map(statistics.mean_and_interval, values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    seeds = max(len(arm.runs) for arm in even.measured)
    over = f"mean [95% interval] over {seeds} seeds" if seeds > 2 else f"{seeds} seed{'s' * (seeds > 1)}"
    return "\n".join([f"generation {last}, {encoder} features, {over}:", *rows])


def changes(groups: Sequence[Arm], encoder: str) -> list[tuple[str, str, str]]:
    """(arm, its baseline, change of its Fréchet distance), if there are too many arms for the headline; else empty."""
    even = comparable(groups)
    bases = [(arm, baseline_arm(arm, even.measured)) for arm in even.measured]
    if len(bases) <= NAMED + 1 or not even.generation:
        return []
    return [
        (arm.label, base.label, difference(arm, base, even.generation, encoder, "frechet_distance"))
        for arm, base in bases
        if base
    ]


def set_sizes(rows: Sequence[Row]) -> str:
    """`512 against 128`: numbers of generated images and of images they are compared with; empty if no row has them."""
    contexts = [row.context for row in rows if row.context.n_generated]
    found = sorted({(one.n_generated, one.n_reference or one.n_training) for one in contexts})
    return " or ".join(f"{generated} against {real}" for generated, real in found)


def baseline_sizes(runs: Sequence[Run]) -> str:
    """The same for the real-test-vs-real-train rows: held-out images, and training images of generation 0."""
    return set_sizes([run.baseline for run in runs if run.baseline])


def _cell(values: Sequence[float]) -> str:
    """Mean and interval. A line may break between the two, but not within the interval."""
    return statistics.mean_and_interval(values).replace(", ", ",\N{NO-BREAK SPACE}")


def full_table(runs: Sequence[Run], groups: Sequence[Arm], encoder: str, names: Sequence[str]) -> dict[str, Any]:
    """One line per arm and generation, for the generations that all of the arm's compared runs have."""
    lines = []
    for arm in comparable(groups).measured:
        for generation in sorted(set.intersection(*(set(run.measured) for run in arm.runs))):
            cells = [_cell(arm.values(generation, encoder, m)) for m in names]
            lines.append((arm.label, generation, cells))
    base = [statistics.number(statistics.baseline_value(runs, encoder, m)) for m in names]
    return {"encoder": encoder, "measures": names, "lines": lines, "base": base}


def full_tables(runs: Sequence[Run], groups: Sequence[Arm], encoder: str) -> list[dict[str, Any]]:
    """Every measure of an encoder, in tables narrow enough for paper."""
    names = [*measures_of(runs, encoder), "real_share"]
    return [full_table(runs, groups, encoder, names[i : i + ACROSS]) for i in range(0, len(names), ACROSS)]


def single_origin(groups: Sequence[Arm]) -> str:
    """A sentence in place of the plot of origins, when the images of every training set have one origin."""
    rows = [row for arm in groups for run in arm.runs for row in run.rows]
    if not rows or any(len(row.provenance) != 1 for row in rows):
        return ""
    origins = sorted({(row.generation or 0, next(iter(row.provenance))) for row in rows})
    if all(origin == ("real" if g == 0 else str(g - 1)) for g, origin in origins):
        later = " Every later one consists of images that the generation before has made." if len(origins) > 1 else ""
        return f"The training set of generation 0 consists of real images.{later}"
    told = ", ".join(f"generation {g}: {o if o == 'real' else f'generation {o}'}" for g, o in origins)
    return f"The images of each training set have one origin ({told})."


def cost_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Seconds of each phase, and images through the network in training and in sampling: one line per run.

    Work shared between runs of a sweep counts in the run that did it. Interrupted attempts count too; `interrupted` is
    their sum.
    """
    phases = progress.phases_of(runs)
    calling = [phase for phase in phases if any(progress.spent(run, phase, "nfe") for run in runs)]
    lines = []
    for run in runs:
        seconds = [progress.spent(run, phase, "seconds") for phase in phases]
        calls = [f"{progress.spent(run, phase, 'nfe'):,.0f}" for phase in calling]
        lines.append((run.name, [f"{s:,.1f}" for s in [*seconds, sum(seconds)]], calls))
    broken = [line["seconds"] for run in runs for line in run.stats if line.get("interrupted") and line.get("seconds")]
    interrupted = f"{sum(broken):,.1f}" if broken else ""
    return {"phases": phases, "calling": calling, "lines": lines if phases else [], "interrupted": interrupted}


def environments(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Software and hardware of the runs: every fact under `numerics` in the unsealed statistics, with its values."""
    found: dict[str, dict[str, None]] = {}  # each value once, in order
    for line in (line for run in runs for line in run.stats):
        for key, value in (line.get("numerics") or {}).items():
            found.setdefault(str(key), {})[str(value)] = None
    return [(key.replace("_", " "), " | ".join(values)) for key, values in sorted(found.items())]


def context(groups: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """N, k, seed and weights behind the numbers of the last rows: one line per encoder, by arm where arms differ.

    A number that differs within an arm (distances of a seed, duplicates) is given as a range over all runs.
    """
    found: dict[str, dict[str, dict[str, list[Any]]]] = {}  # encoder -> key -> arm -> values
    for arm in groups:
        for row in (row for run in arm.runs for row in run.rows[-1:]):
            whole = row.context.model_dump(exclude_unset=True)
            encoders = whole.pop("encoders", {})
            for name, one in {"all encoders": whole, **encoders}.items():
                for key, value in one.items():
                    if key != "top_eigenvalues" and value is not None:
                        found.setdefault(name, {}).setdefault(key, {}).setdefault(arm.label, []).append(value)
    return [
        (name, [f"{_WORDS[key]}: {_by_arm(values)}" for key, values in keys.items()]) for name, keys in found.items()
    ]


def _by_arm(values: dict[str, list[Any]]) -> str:
    """One text if all arms agree, else each text with its arms; a range if runs of one arm differ in a number."""
    every = [value for arm in values.values() for value in arm]
    texts = {label: list(dict.fromkeys(map(_brief, arm))) for label, arm in values.items()}
    if max(map(len, texts.values())) > 1 and all(isinstance(value, int | float) for value in every):
        return f"{_brief(min(every))} … {_brief(max(every))}"
    labels: dict[str, list[str]] = {}
    for label, arm in texts.items():
        labels.setdefault(" or ".join(arm), []).append(label)
    return next(iter(labels)) if len(labels) == 1 else "; ".join(f"{t} ({', '.join(of)})" for t, of in labels.items())


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{verdicts.name(k)} {v}" for k, v in value.items())
    if isinstance(value, float):
        return statistics.number(value)
    return value[:16] if isinstance(value, str) else str(value)


def explorer(runs: Sequence[Run], groups: Sequence[Arm], names: Sequence[str]) -> dict[str, Any]:
    """Numbers for the plot of any measure against any other: one point per generation of each run."""
    looks = style.styles(groups)
    columns = [(name, m) for name in names for m in measures_of(runs, name)]

    def point(row: Row) -> list[float | None]:
        return [row.generation, row.value("", "real_share"), *(_short(row.value(*column)) for column in columns)]

    return {
        "axes": ["generation", "real_share", *(f"{m} · {name}" for name, m in columns)],
        "titles": ["generation", title("real_share"), *(f"{verdicts.marked(m, name)} · {name}" for name, m in columns)],
        "start": [_position(columns, measure) for measure in ("training_entropy", "generalization_score")],
        "arms": [
            {
                "label": arm.label,
                "colour": looks[arm.label].colour,
                "dash": looks[arm.label].dasharray,
                "marker": looks[arm.label].outline,
                "runs": [list(map(point, run.rows)) for run in arm.runs],
            }
            for arm in groups
        ],
    }


def _position(columns: Sequence[tuple[str, str]], measure: str) -> int:
    names = [name for name, m in columns if m == measure]
    return 2 + columns.index((score_encoder(names), measure)) if names else 0


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
