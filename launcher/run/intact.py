"""Finds the damage of a bad copy to sealed folders: changed, lost and unreadable files, and lost folders.

    a folder  ->  look  ->  Found: sealed folders, and lines on what cannot be read
    a run     ->  missing  ->  lines on sealed folders that the run must hold and does not

A run must hold every folder that one of its sealed folders was made from, every folder that stats.jsonl says it sealed,
and, once state.json says that all generations are done, the folder of every step.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entroloop.data import files
from entroloop.data.errors import UserError, reason
from entroloop.data.runfolder import CONFIG, FOLDERS, Layout, Step, read_config, values_at
from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL
from entroloop.launcher.run import fork
from entroloop.launcher.run.phases import BY_NAME
from entroloop.launcher.run.recipes import steps

_GENERATION = re.compile(r"generation_(\d{4,})")
_STEP = re.compile(r"generation (\d+) (\w+)")
_INSIDE = {*FOLDERS.values(), *BY_NAME, "images", "classifier"}  # names of the folders that a run seals


@dataclass
class Found:
    """What is below a folder.

    sealed      folders that hold a manifest, in order
    runs        folders of runs, also of those that have lost their configuration
    unreadable  one line per folder that cannot be listed
    """

    sealed: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def look(folder: Path) -> Found:
    """Lists the sealed folders and runs at and below a folder."""
    found = Found()
    runs = set()
    for name, folders, names in os.walk(folder, onerror=lambda error: found.unreadable.append(unread(error, folder))):
        here = Path(name)
        folders.sort()
        if manifest.MANIFEST in (*names, *folders):
            found.sealed.append(here)
            if here != folder and here.parent != folder and here.name in _INSIDE and _of_a_run(here.parent.name):
                runs.add(here.parent.parent)
        if CONFIG in names and ("state.json" in names or any(map(_of_a_run, folders))):
            runs.add(here)
    found.sealed.sort()
    found.runs = sorted(runs)
    return found


def _of_a_run(name: str) -> bool:
    return name == "real" or _GENERATION.fullmatch(name) is not None


def unread(error: OSError, path: Path) -> str:
    """The line on a file or folder that the operating system does not let this process read."""
    return f"{os.fsdecode(error.filename or path)}: {manifest.UNREADABLE} ({reason(error)})"


def inputs(path: Path, told: set[Path]) -> list[str]:
    """One line per input of a run's sealed folder that has changed since the folder was made or is not sealed.

    told  absolute paths of folders that a line names already: they get no second line. Those named here are added.
    """
    here = path if _of_a_run(path.parent.name) else path.absolute()
    if here.name not in _INSIDE or not _of_a_run(here.parent.name):
        return []
    layout, found = Layout(here.parent.parent), []
    for name, digest in manifest.read(path).made_from.items():
        folder, must = _folder(layout, name, layout.generation_of(here))
        if folder is None or folder.absolute() in told or not (must or manifest.is_sealed(folder)):
            continue
        line = _changed(folder, digest, path)
        if line:
            told.add(folder.absolute())
            found.append(line)
    return found


def _changed(folder: Path, digest: str, maker: Path) -> str:
    """The line on an input of `maker` whose seal has not this digest; empty if it has."""
    if not manifest.is_sealed(folder):
        return f"{folder}: not sealed, but {maker} was made from it"
    try:
        same = manifest.read(folder).digest == digest
    except UserError as error:
        return str(error)
    except OSError as error:
        return unread(error, folder)
    return "" if same else f"{folder / manifest.MANIFEST}: changed since {maker} was made from it"


def _folder(layout: Layout, name: str, generation: int) -> tuple[Path | None, bool]:
    """The folder that a seal's `made_from` calls by this name, and whether the run itself must hold it.

    generation  that of the sealed folder
    """
    if step := _STEP.fullmatch(name):
        return layout.of(Step(int(step[1]), step[2])), True
    if name in BY_NAME:
        return layout.of(Step(REAL, name)), True
    if name == "classifier":
        return layout.classifier, True
    if name == "real" and (manifest.is_sealed(layout.images) or _imported(layout)):
        return layout.images, True
    outside = {"real": ("data", "source"), "guide": ("sample", "guide")}  # these may be on another machine
    if name not in outside or not layout.config.is_file():
        return None, False
    section, key = outside[name]
    try:
        given = values_at(read_config(layout), generation)[section][key]
    except (UserError, KeyError, TypeError):  # `missing` tells it
        return None, False
    return (Path(given), False) if isinstance(given, str) else (None, False)


def _imported(layout: Layout) -> bool:
    return any(line.get("imported") for line in _lines(layout.stats(REAL)))


def missing(run: Path, told: set[Path]) -> list[str]:
    """One line per sealed folder that the run must hold and does not, and one if its configuration is lost or damaged.

    told  absolute paths of folders that a line names already: they get no second line

    Raises OSError when one of the run's records cannot be read.
    """
    layout, found = Layout(run), []
    must = dict[Step, str]()
    if not layout.config.exists():
        found.append(f"{layout.config}: missing, but {run} holds sealed folders of a run")
    else:
        try:
            about = read_config(layout).get("forked_from") or {}
            if about.get("generation") is not None:
                must = dict.fromkeys(steps(about["generation"] + 1), f"{run} was forked with it")
                if all(_is_whole(layout.of(step), told) for step in must):
                    found += fork.problems(layout, about["generation"], about["digest"])
        except UserError as error:
            found.append(str(error))
    must = dict.fromkeys(_finished(layout), f"{layout.state} says that every generation was done") | must
    for generation in (REAL, *_generations(run)):
        for line in _lines(layout.stats(generation)):
            if line.get("sealed") is True and line.get("phase") in BY_NAME:
                must.setdefault(Step(generation, line["phase"]), f"{layout.stats(generation)} says that it was sealed")
    for step, why in must.items():
        folder = layout.of(step)
        if not manifest.is_sealed(folder) and folder.absolute() not in told:
            found.append(f"{folder}: not sealed, but {why}")
    return found


def _is_whole(folder: Path, told: set[Path]) -> bool:
    return manifest.is_sealed(folder) and folder.absolute() not in told


def _finished(layout: Layout) -> list[Step]:
    """Every step of a run whose state.json says how many generations are done; otherwise none."""
    try:
        state = json.loads(layout.state.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    done = state.get("generations") if isinstance(state, dict) else None
    return list(steps(done)) if isinstance(done, int) else []


def _generations(run: Path) -> list[int]:
    found = (_GENERATION.fullmatch(name) for name in os.listdir(run))
    return sorted(int(one[1]) for one in found if one)


def _lines(stats: Path) -> Iterator[dict[str, Any]]:
    """The lines of a stats.jsonl that are whole."""
    return (value for _, value in files.json_lines(stats) if isinstance(value, dict))
