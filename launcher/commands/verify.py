"""`entroloop verify`: checks every sealed file below a folder, and that a run has all its folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.wording import counted
from entroloop.launcher.commands.common import Json, Quiet, Verbose

if TYPE_CHECKING:
    from entroloop.data.store.manifest import Manifest


def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DATASET_OR_RUN", help="A sealed folder, or the folder of a run.")],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check every sealed file below a folder, and name missing, changed and unreadable files and folders.

    A run must hold every folder that its sealed folders were made from and that its records call sealed. Exit status 2
    if anything is missing or changed, 1 if nothing is but something cannot be read.
    """
    from entroloop.data.progress import Progress
    from entroloop.data.store import index, manifest
    from entroloop.launcher.run import intact

    files.check_folder(folder)
    there = intact.look(folder)
    if not (there.sealed or there.runs or there.unreadable):
        raise UserError(f"{folder}: holds nothing sealed: not a data set or run of entroloop")
    problems = dict.fromkeys(there.unreadable)  # each line once
    manifests: dict[Path, Manifest] = {}
    gone: list[Path] = []

    def read(path: Path) -> list[str]:
        found = manifest.read(path)
        gone.extend(path / name for name in sorted(manifest.removed(path)) if not (path / name).exists())
        manifests[path] = found
        return []

    def content(path: Path) -> list[str]:
        damaged = manifest.problems(path, bar.advance)
        return damaged or (index.problems(path) if manifests[path].kind == index.KIND else [])

    for path in there.sealed:
        problems |= dict.fromkeys(_lines(read, path))
    told = {path.absolute() for path in there.sealed if path not in manifests}
    if not as_json:
        for name in gone:
            typer.echo(f"{name}: removed by retention")
    size = sum(found.bytes for found in manifests.values())
    with Progress("verify", size, "B") as bar:
        for path in manifests:
            problems |= dict.fromkeys([*_lines(content, path), *_lines(partial(intact.inputs, told=told), path)])
    for run in there.runs:
        problems |= dict.fromkeys(_lines(partial(intact.missing, told=told), run))
    unreadable = sum(f": {manifest.UNREADABLE} (" in line for line in problems)
    facts = {
        "folder": str(folder), "sealed": len(there.sealed),
        "files": sum(len(found.files) for found in manifests.values()), "bytes": size, "removed": len(gone),
        "problems": [*problems], "unreadable": unreadable,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        for line in problems:
            typer.echo(line, err=True)
        typer.echo(_summary(facts))
    if problems:
        raise typer.Exit(2 if len(problems) > unreadable else 1)


def _lines(check: Callable[[Path], list[str]], path: Path) -> list[str]:
    """The lines that a check finds. What the check itself cannot read is one of them."""
    from entroloop.launcher.run import intact

    try:
        return check(path)
    except UserError as error:
        return [str(error)]
    except OSError as error:
        return [intact.unread(error, path)]


def _summary(facts: dict[str, Any]) -> str:
    """One line: how much was checked, and how much of it is not intact."""
    damaged, unreadable, removed = len(facts["problems"]) - facts["unreadable"], facts["unreadable"], facts["removed"]
    line = f"{facts['folder']}: {counted(facts['sealed'], 'sealed folder')}, {counted(facts['files'], 'file')}, "
    line += f"{facts['bytes']:,} bytes: "
    told = [f"{damaged} damaged or missing"] if damaged else []
    told += [f"{unreadable} unreadable"] if unreadable else []
    line += ", ".join(told or ["all intact"])
    return f"{line}, {removed} removed by retention" if removed else line
