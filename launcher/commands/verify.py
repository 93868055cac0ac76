"""`entroloop verify`: checks every sealed file below a folder, and that a run has all its folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from entroloop.data.wording import counted
from entroloop.launcher.commands.common import Json, Quiet, Verbose


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
    from entroloop.data.errors import UserError
    from entroloop.data.progress import Progress
    from entroloop.data.store import index, manifest
    from entroloop.launcher.run import intact

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    there = intact.look(folder)
    problems = there.unreadable
    if not (there.sealed or there.runs or problems):
        raise UserError(f"{folder}: holds nothing sealed: not a data set or run of entroloop")

    files = size = 0
    gone: list[Path] = []

    def check(found: Callable[[Path], list[str]], path: Path) -> list[str]:
        """The new lines that a check finds. What the check itself cannot read is one of them."""
        try:
            lines = found(path)
        except UserError as error:
            lines = [str(error)]
        except OSError as error:
            lines = [intact.unread(error, path)]
        new = [line for line in dict.fromkeys(lines) if line not in problems]
        problems.extend(new)
        return new

    def measure(path: Path) -> list[str]:
        nonlocal files, size
        found = manifest.read(path)
        gone.extend(path / name for name in sorted(manifest.removed(path)) if not (path / name).exists())
        files, size = files + len(found.files), size + found.bytes
        return []

    def content(path: Path) -> list[str]:
        damaged = manifest.problems(path, bar.advance)
        return damaged or (index.problems(path) if manifest.read(path).kind == index.KIND else [])

    readable = [path for path in there.sealed if not check(measure, path)]
    if not as_json:
        for name in gone:
            typer.echo(f"{name}: removed by retention")
    with Progress("verify", size, "B") as bar:
        for path in readable:
            check(content, path)
            check(intact.inputs, path)
    for run in there.runs:
        check(intact.missing, run)
    unreadable = [line for line in problems if f": {manifest.UNREADABLE} (" in line]
    damaged = len(problems) - len(unreadable)
    if as_json:
        facts = {
            "folder": str(folder), "sealed": len(there.sealed), "files": files, "bytes": size, "removed": len(gone),
            "problems": problems, "unreadable": len(unreadable),
        }  # fmt: skip
        typer.echo(json.dumps(facts))
    else:
        for line in problems:
            typer.echo(line, err=True)
        told = [f"{damaged} damaged or missing"] * bool(damaged) + [f"{len(unreadable)} unreadable"] * bool(unreadable)
        typer.echo(
            f"{folder}: {counted(len(there.sealed), 'sealed folder')}, {counted(files, 'file')}, {size:,} bytes: "
            + (", ".join(told) or "all intact")
            + (f", {len(gone)} removed by retention" if gone else "")
        )
    if problems:
        raise typer.Exit(2 if damaged else 1)
