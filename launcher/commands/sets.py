"""Commands about sets on disk: `import`, `verify` and `seal`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from entroloop.data.store.manifest import Manifest


def import_command(
    source: Annotated[str, typer.Argument(help="digits, mixture, wine, …, or a file or folder of images or vectors")],
    dest: Annotated[Path, typer.Argument(help="new folder for the shards")],
    resolution: Annotated[int | None, typer.Option(help="pixels a side, after a centre-crop to the square")] = None,
    limit: Annotated[
        int | None, typer.Option(help="the first N; of each class in turn where the source is sorted by class")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, test, … where the source has splits")] = None,
    heldout: Annotated[int, typer.Option(help="where it has none: this many seeded samples are the test split")] = 0,
    split_seed: Annotated[int, typer.Option(help="seed of --heldout")] = 0,
    color: Annotated[str, typer.Option(help="auto (grey where every image is), grey or rgb")] = "auto",
    key: Annotated[
        str | None,
        typer.Option(help="which array of an .npz, or which encoder's of a feature folder, if it has several"),
    ] = None,
    labels: Annotated[bool, typer.Option(help="keep the labels")] = True,
    encoding: Annotated[str, typer.Option(help="of images in the shards: png or npy")] = "png",
    shard_size: Annotated[int | None, typer.Option(help="samples a shard; 1,000, fewer where they are large")] = None,
    filter: Annotated[
        str, typer.Option(help="of the resize: box, lanczos, or auto: box where the factor is whole, else lanczos")
    ] = "auto",
    workers: Annotated[int | None, typer.Option(help="processes; one a core by default")] = None,
    part: Annotated[str | None, typer.Option(help="i::n makes every n-th shard, for array jobs; then `seal`")] = None,
) -> None:
    """Import images or vectors into sealed shards. Run again, it goes on where it stopped."""
    from entroloop.data.errors import UserError
    from entroloop.data.seeds import parse_part
    from entroloop.data.sources import importer as importers
    from entroloop.data.sources.listing import told
    from entroloop.data.sources.settings import Settings
    from entroloop.data.store import manifest
    from entroloop.launcher.process import StopFlag

    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    settings = Settings(resolution, limit, split, heldout, split_seed, color, labels, encoding, shard_size, filter, key)
    share = None if part is None else parse_part(part)
    stop = StopFlag()
    if share is not None:
        ignored = importers.import_part(
            source, dest, settings, share, workers=workers, progress=True, stop=lambda: bool(stop)
        )
        note = f" ({told(ignored)})" if ignored else ""
        typer.echo(f"{dest}: part {share} done{note}; when all are: entroloop seal {dest}")
        return
    finished = manifest.is_sealed(dest)
    ignored = importers.import_part(source, dest, settings, workers=workers, progress=True, stop=lambda: bool(stop))
    parts = [_line(dest, importers.seal_import(dest)), told(ignored), "already imported" if finished else ""]
    typer.echo(", ".join(part for part in parts if part))


def _line(dest: Path, sealed: Manifest) -> str:
    about = sealed.about
    shape = " x ".join(str(n) for n in about["shape"])
    classes = f", {about['num_classes']} classes" if about.get("num_classes") and about["labelled"] else ""
    return f"{dest}: {sealed.count:,} {sealed.kind} of {shape}{classes} in {_count(len(about['shards']), 'shard')}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DATASET_OR_RUN", help="a sealed folder, or a run that holds some")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Re-check every sealed file below a folder, and what it was made from, and name what is missing or changed.

    Exit status 2 if anything is.
    """
    from entroloop.data.errors import UserError
    from entroloop.data.progress import Progress
    from entroloop.data.store import index as indexed
    from entroloop.data.store import manifest

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    sealed = sorted(path.parent for path in folder.rglob(manifest.MANIFEST))
    if not sealed:
        raise UserError(f"{folder}: holds nothing sealed: not a data set or run of entroloop")
    problems: list[str] = []
    readable: list[Path] = []
    count = size = removed = 0
    for path in sealed:
        try:
            found = manifest.read(path)
            gone = sorted(name for name in manifest.removed(path) if not (path / name).exists())
        except UserError as error:
            problems.append(str(error))
            continue
        readable.append(path)
        count, size = count + len(found.files), size + found.bytes
        removed += len(gone)
        if not as_json:
            for name in gone:
                typer.echo(f"{path / name}: removed by retention")
    with Progress("verify", size, "B") as bar:
        for path in readable:
            damaged = manifest.problems(path, bar.advance)
            if not damaged and manifest.read(path).kind == indexed.KIND:
                damaged = indexed.problems(path)
            problems += [line for line in damaged + _other_inputs(path) if line not in problems]
    if as_json:
        facts = {
            "folder": str(folder), "sealed": len(sealed), "files": count, "bytes": size, "removed": removed,
            "problems": problems,
        }  # fmt: skip
        typer.echo(json.dumps(facts))
    else:
        for line in problems:
            typer.echo(line, err=True)
        typer.echo(
            f"{folder}: {_count(len(sealed), 'sealed folder')}, {_count(count, 'file')}, {size:,} bytes: "
            + (f"{len(problems)} damaged" if problems else "all intact")
            + (f", {removed} removed by retention" if removed else "")
        )
    if problems:
        raise typer.Exit(2)


def _other_inputs(path: Path) -> list[str]:
    """One line for each input of a run's sealed folder that is not the one that the folder was made from."""
    from entroloop.data.errors import UserError, reading
    from entroloop.data.store import manifest
    from entroloop.launcher.run.steps import Layout, read_config, steps

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
    outside = {"real": real, "guide": guide}  # may be on another machine
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


def seal_command(folder: Annotated[Path, typer.Argument(help="an import whose parts are all done")]) -> None:
    """Seal an import that was made in parts."""
    from entroloop.data.sources import importer as importers

    typer.echo(_line(folder, importers.seal_import(folder)))
