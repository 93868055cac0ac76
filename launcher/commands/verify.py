"""`entroloop verify`: checks every sealed file below a folder, and the inputs of every sealed folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import count


def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DATASET_OR_RUN", help="a sealed folder, or the folder of a run")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check every sealed file below a folder and the inputs of sealed folders, and name missing or changed files.

    Exit status 2 if there is any problem.
    """
    from entroloop.data.errors import UserError
    from entroloop.data.progress import Progress
    from entroloop.data.store import index, manifest

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    sealed = sorted(path.parent for path in folder.rglob(manifest.MANIFEST))
    if not sealed:
        raise UserError(f"{folder}: holds nothing sealed: not a data set or run of entroloop")
    problems: list[str] = []
    readable: list[Path] = []
    files = size = removed = 0
    for path in sealed:
        try:
            found = manifest.read(path)
            gone = sorted(name for name in manifest.removed(path) if not (path / name).exists())
        except UserError as error:
            problems.append(str(error))
            continue
        readable.append(path)
        files, size = files + len(found.files), size + found.bytes
        removed += len(gone)
        if not as_json:
            for name in gone:
                typer.echo(f"{path / name}: removed by retention")
    with Progress("verify", size, "B") as bar:
        for path in readable:
            damaged = manifest.problems(path, bar.advance)
            if not damaged and manifest.read(path).kind == index.KIND:
                damaged = index.problems(path)
            problems += [line for line in damaged + _other_inputs(path) if line not in problems]
    if as_json:
        facts = {
            "folder": str(folder), "sealed": len(sealed), "files": files, "bytes": size, "removed": removed,
            "problems": problems,
        }  # fmt: skip
        typer.echo(json.dumps(facts))
    else:
        for line in problems:
            typer.echo(line, err=True)
        typer.echo(
            f"{folder}: {count(len(sealed), 'sealed folder')}, {count(files, 'file')}, {size:,} bytes: "
            + (f"{len(problems)} damaged" if problems else "all intact")
            + (f", {removed} removed by retention" if removed else "")
        )
    if problems:
        raise typer.Exit(2)


def _other_inputs(path: Path) -> list[str]:
    """One line per input of a run's sealed folder that has changed since the folder was made or is not sealed."""
    from entroloop.data.errors import UserError, reading
    from entroloop.data.runfolder import Layout, read_config
    from entroloop.data.store import manifest
    from entroloop.launcher.run.recipes import steps

    layout = Layout(path.absolute().parent.parent)
    if not layout.config.is_file():
        return []
    try:
        config = read_config(layout)
        with reading(str(layout.config)):
            inside = {str(step): layout.of(step) for step in steps(config["generations"])}
            source, guide = Path(config["data"]["source"]), Path(config["sample"]["guide"] or "")
    except UserError as error:
        return [str(error)]
    inside["classifier"] = layout.classifier
    real = layout.images if manifest.is_sealed(layout.images) else source
    outside = {"real": real, "guide": guide}  # these may be on another machine
    found = []
    for name, digest in manifest.read(path).made_from.items():
        folder = {**inside, **outside}.get(name)
        if folder is None or (name in outside and not manifest.is_sealed(folder)):
            continue
        if not manifest.is_sealed(folder):
            found.append(f"{folder}: not sealed, but {path} was made from it")
            continue
        try:
            if manifest.read(folder).digest != digest:
                found.append(f"{folder / manifest.MANIFEST}: changed since {path} was made from it")
        except UserError as error:
            found.append(str(error))
    return found
