"""Finished and unfinished runs, read back from their folders for a report.

    run and sweep folders  ->  read_runs  ->  [Run]

Reads what `launcher` writes: `config.yaml`, `generation_*/metrics/metrics.jsonl` and `generation_*/stats.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from entroloop.data import files
from entroloop.data.errors import UserError, reason
from entroloop.data.runfolder import CONFIG, Layout, Step, read_config
from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL
from entroloop.eval.catalogue import space
from entroloop.eval.measures.row import Row

REAL_ONLY = "real-only"


class _Config(BaseModel, strict=True):
    seed: NonNegativeInt = 0
    generations: PositiveInt = 1


class _Spent(BaseModel, strict=True):
    phase: str
    seconds: FiniteFloat | None = None
    nfe: FiniteFloat | None = None
    kimg: FiniteFloat | None = None
    loss: float | None = None
    radius_median: FiniteFloat | None = None
    numerics: dict[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """One run, finished or not."""

    folder: Path
    name: str
    config: dict[str, Any]  # flat: "selection.strategy" -> value
    rows: tuple[Row, ...]  # one per measured generation, in order
    baseline: Row | None
    stats: tuple[dict[str, Any], ...]  # phases with their seconds; each with its "generation"
    failed: str = ""  # the reason in state.json if the last attempt failed
    sealed: int | None = None  # finished generations, also those that were not to be measured; None: those with a row
    vectors: bool = False  # whether the samples are vectors
    earlier: tuple[dict[str, Any], ...] = ()  # of a fork: `stats` of the generations of the run it was forked from

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @property
    def strategy(self) -> str:
        """The strategy that chooses, or `real-only` where every generation trains on the real samples alone."""
        if self.config.get("loop.keep_real") == 1:
            return REAL_ONLY
        return str(self.config.get("selection.strategy", "random"))

    @property
    def paradigm(self) -> str:
        return str(self.config.get("loop.paradigm", ""))

    @property
    def planned(self) -> int:
        """Number of generations that the configuration asks for."""
        return int(self.config.get("generations", len(self.rows)))

    @property
    def finished(self) -> bool:
        return self.done >= self.planned

    @property
    def done(self) -> int:
        """Number of finished generations."""
        return len(self.rows) if self.sealed is None else self.sealed

    def value(self, generation: int, encoder: str, measure: str) -> float | None:
        """A measure of one generation, None where it is missing or undefined."""
        row = next((row for row in self.rows if row.generation == generation), None)
        return None if row is None else row.value(encoder, measure)

    @property
    def measured(self) -> list[int]:
        """The generations that have a row."""
        return [row.generation for row in self.rows if row.generation is not None]

    def generation_folder(self, generation: int) -> Path:
        return Layout(self.folder).generation(generation)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in the given run and sweep folders, each once, in the order given.

    Runs of equal name are named by the end of their path that tells them apart: `strategies/seed0-random`.
    Raises UserError for a folder that holds no run and for a damaged row or configuration, naming the file.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        inside = run_folders(folder)
        if not inside:
            raise UserError(f"{folder}: not a run or a sweep (no {CONFIG} in it); give a folder that `run` made")
        for path in inside:
            try:
                found.setdefault(path.resolve(), read_run(path))
            except OSError as error:
                raise UserError(f"{error.filename}: not readable ({reason(error)})") from error
    return _told_apart(found)


def _told_apart(found: Mapping[Path, Run]) -> list[Run]:
    out = []
    for path, run in found.items():
        twins = [other.parts for other, one in found.items() if one.name == run.name and other != path]
        if twins:
            lengths = range(1, len(path.parts) + 1)
            length = next(n for n in lengths if all(parts[-n:] != path.parts[-n:] for parts in twins))
            run = replace(run, name="/".join(path.parts[-length:]))
        out.append(run)
    return out


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs up to two levels below, by name."""
    if is_run(folder):
        return [folder]
    below = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    return [path for path in below if is_run(path)]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run. A sweep's folder may hold a `config.yaml` too, but beside runs and no generations."""
    if not (folder / CONFIG).is_file():
        return False
    return any(folder.glob("generation_*")) or not any(folder.glob(f"*/{CONFIG}"))


def read_run(folder: Path) -> Run:
    """Reads one run. Only rows in sealed folders count.

    Raises UserError naming file, line and key when a value is not valid.
    """
    layout = Layout(folder)
    config = read_config(layout)
    if wrong := _wrong(_Config, config):
        raise UserError(f"{layout.config}: {wrong}")
    rows: list[Row] = []
    stats = [{**line, "generation": "real"} for line in _json_lines(layout.stats(REAL))]
    for generation in sorted(folder.glob("generation_*")):
        rows += _rows(generation / "metrics")
        stats += [{**line, "generation": generation.name} for line in _json_lines(generation / "stats.jsonl")]
    rows.sort(key=lambda row: row.generation or 0)
    baseline = next((row.baseline for row in rows if row.baseline), None)
    name = str(config.get("name") or folder.name)
    failed = _failure(layout.state)
    sealed = sum(1 for _ in folder.glob(f"generation_*/metrics/{manifest.MANIFEST}"))
    earlier = tuple(_earlier(config, layout))
    of_vectors = _of_vectors(layout)
    return Run(folder, name, flat(config), tuple(rows), baseline, tuple(stats), failed, sealed, of_vectors, earlier)


def _earlier(config: Mapping[str, Any], own: Layout) -> Iterator[dict[str, Any]]:
    """The lines of stats.jsonl of the generations that a fork has from another run, while that run is in its place."""
    about = config.get("forked_from") or {}
    if about.get("generation") is None:
        return
    yield from _earlier(about["config"], own)
    source = Layout(Path(about["run"]))
    for generation in range(about["generation"] + 1):
        both = [layout.of(Step(generation, "train")) for layout in (own, source)]
        if all(map(manifest.is_sealed, both)) and len({manifest.read(folder).digest for folder in both}) == 1:
            path = source.stats(generation)
            yield from ({**line, "generation": path.parent.name} for line in _json_lines(path))


def _of_vectors(layout: Layout) -> bool:
    first = layout.of(Step(0, "select"))
    return manifest.is_sealed(first) and len(manifest.read(first).about.get("shape", ())) == 1


def for_people(run: Run) -> Run:
    """The same run; if its samples are vectors, its rows call the feature space of the samples `vector`."""

    def said(row: Row) -> Row:
        measures = {space(name, run.vectors): values for name, values in row.measures.items()}
        encoders = {space(name, run.vectors): values for name, values in row.context.encoders.items()}
        context = row.context.model_copy(update={"encoders": encoders})
        return row.model_copy(update={"measures": measures, "context": context})

    baseline = None if run.baseline is None else said(run.baseline)
    return replace(run, rows=tuple(map(said, run.rows)), baseline=baseline) if run.vectors else run


def _failure(path: Path) -> str:
    """The first line of the reason why the last attempt failed; empty if it did not fail."""
    try:
        state = json.loads(path.read_text())
        if state["status"] != "failed":
            return ""
        return str(state.get("reason", "")).strip().partition("\n")[0] or "no reason given"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _rows(folder: Path) -> list[Row]:
    path = folder / "metrics.jsonl"
    if not manifest.is_sealed(folder) or not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(Row.from_json(line))
        except ValueError as error:
            wrong = _told(error) if isinstance(error, ValidationError) else "not JSON"
            what = f"damaged row of measures in line {number} ({wrong})"
            raise UserError(f"{path}: {what}; delete the folder and run again") from error
    manifest.check(folder, [path.name])
    return rows


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that a working run appends to. Raises UserError for a line of another kind."""
    lines = []
    for number, value in files.json_lines(path):
        if wrong := _wrong(_Spent, value):
            raise UserError(f"{path}: damaged line {number} ({wrong}); delete the line")
        lines.append(value)
    return lines


def _wrong(model: type[BaseModel], value: Any) -> str:
    """The first fault in one line: key, value and what would be right; empty if everything fits."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        return _told(error)
    return ""


def _told(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return "expected keys and values"
    key = ".".join(map(str, first["loc"]))
    return f"{key} is missing" if first["type"] == "missing" else f"{key} is {first['input']!r:.60}: {first['msg']}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as "section.key" -> value."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
