"""The live page of runs at work: its parts as HTML, made again when what they show has changed.

    run and sweep folders, state of each run's phases  ->  Live  ->  the page, and the parts that it replaces in itself

The folders are only read.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entroloop.data.errors import UserError, reason
from entroloop.data.progress import told
from entroloop.data.store.manifest import is_sealed
from entroloop.data.store.shards import REAL
from entroloop.eval.report import figures, page, pictures
from entroloop.eval.report.arms import Arm, arms
from entroloop.eval.report.runs import Run, for_people, read_runs, run_folders

States = Callable[[Sequence[Path]], list[dict[str, Any]]]
PARTS = {
    "problem": "",
    "phases": "Phases",
    "samples": "Newest samples",
    "points": "Points of each generation",
    "loss": "Training loss",
    "curves": "Over the generations",
}


@dataclass(frozen=True)
class Part:
    """The HTML of a part, empty where there is nothing to show, and a tag that changes with it."""

    html: str = ""

    @property
    def tag(self) -> str:
        return hashlib.sha256(self.html.encode()).hexdigest()[:16]


class Live:
    """What the live page shows of run and sweep folders, some of which may not be there yet.

    states  run folders -> the state of each, as `launcher.status.states` returns them
    every   seconds; the folders are read at most once in this time, however many browsers ask
    """

    def __init__(self, folders: Sequence[Path], states: States, every: float) -> None:
        self.folders, self.every = folders, every
        self._states = states
        self._lock = threading.Lock()
        self._looked = -every
        self._parts = dict.fromkeys(PARTS, Part())
        self._keys: dict[str, object] = {}
        self.title = f"{', '.join(map(str, folders))} · entroloop"
        self._templates = page.templates()
        self._templates.filters["words"] = _words

    def page(self) -> str:
        """The whole page as it is now."""
        parts = self.parts()
        return self._templates.get_template("live.html.j2").render(
            title=self.title, parts=parts, titles=PARTS, every=self.every
        )

    def parts(self) -> dict[str, Part]:
        """The parts by name. A part whose input has not changed is the same object as before."""
        with self._lock:
            if time.monotonic() - self._looked >= self.every:
                problem = ""
                try:
                    self._look()
                except (UserError, OSError) as error:  # OSError: a file that a run at work has just removed
                    problem = str(error) if isinstance(error, UserError) else f"{error.filename}: {reason(error)}"
                self._part("problem", problem, lambda: self._drawn("problem", problem=problem))
                self._looked = time.monotonic()
            return dict(self._parts)

    def _look(self) -> None:
        there = [folder for folder in self.folders if run_folders(folder)]
        missing = [str(folder) for folder in self.folders if folder not in there]
        runs = list(map(for_people, read_runs(there)))
        groups = arms(runs)
        rows = list(map(_row, runs, self._states([run.folder for run in runs])))
        if runs:
            self.title = f"Live: {page.title_of(runs)}"
        names = [run.folder for run in runs]
        sampled = [_newest(run) for run in runs]
        lines, measured = [len(run.stats) for run in runs], [run.measured for run in runs]
        self._part("phases", (rows, missing), lambda: self._drawn("phases", rows=rows, missing=missing))
        self._part("samples", (names, sampled), lambda: self._samples(groups))
        self._part("points", (names, sampled), lambda: self._pictures(figures.points_figures(groups)))
        self._part("loss", (names, lines), lambda: self._pictures(figures.loss_figures(runs)))
        self._part("curves", (names, measured), lambda: self._curves(runs))

    def _part(self, name: str, key: object, make: Callable[[], str]) -> None:
        if self._keys.get(name, self) != key:
            self._parts[name] = Part(make().strip())
            self._keys[name] = key

    def _drawn(self, macro: str, **values: Any) -> str:
        return str(getattr(self._templates.get_template("live_parts.html.j2").module, macro)(**values))

    def _pictures(self, found: Iterable[figures.Picture]) -> str:
        return self._drawn("figures", found=drawn) if (drawn := list(found)) else ""

    def _curves(self, runs: Sequence[Run]) -> str:
        html = self._pictures(figures.main_figures(runs))
        return page.for_vectors(html) if runs and all(run.vectors for run in runs) else html

    def _samples(self, groups: Sequence[Arm]) -> str:
        """The first samples of the last generation that each arm has sampled, after real images."""
        real, found = None, []
        for label, run in pictures.shown_runs(groups).items():
            if (generation := _newest(run)) is None:
                continue
            strips = pictures.sample_strips({label: run}, [generation])
            real = real or strips.get(REAL, {}).get(label)
            found += [(label, generation, strip) for strip in strips.get(generation, {}).values()]
        return self._drawn("samples", real=real, found=found) if found else ""


def _newest(run: Run) -> int | None:
    """The last generation whose samples are sealed, of images or vectors."""
    return next((g for g in reversed(range(run.planned)) if is_sealed(run.generation_folder(g) / "samples")), None)


def _row(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """A run in the grid: the steps of the real data, those of each generation, and what is told about the run."""
    cells = [
        [entry for entry in state["phases"] if entry["generation"] == generation]
        for generation in (REAL, *range(state["generations"]))
    ]
    lines = [state["reason"]] if state["reason"] else []
    for entry in state["phases"]:
        where = "real data" if entry["generation"] == REAL else f"generation {entry['generation']}"
        lines += [f"{where}, {entry['phase']}: {told(progress)}" for progress in entry["progress"]]
    if last := state["last"]:
        lines.append(f"last loss {last['loss']:.3g} (generation {last['generation']}, {last['kimg']:.1f} kimg)")
    return {"name": run.name, "status": state["status"], "cells": cells, "told": lines}


def _words(entries: Sequence[dict[str, Any]]) -> str:
    """The phases of one generation for a screen reader: `done`, `to do` or `select done, train 40 %, sample to do`."""
    words = {"sealed": "done", "running": "at work", "pending": "to do"}
    states = {entry["state"] for entry in entries}
    if len(states) == 1 and states != {"running"}:
        return words[states.pop()]
    return ", ".join(
        f"{e['phase']} {100 * e['done'] / e['total']:.0f} %"
        if e["state"] == "running" and e["total"]
        else f"{e['phase']} {words[e['state']]}"
        for e in entries
    )
