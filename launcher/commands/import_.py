"""`entroloop import`: images or vectors of many formats into sealed shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import set_line


def import_command(
    source: Annotated[str, typer.Argument(help="digits, mixture, wine, …, or a file or folder of images or vectors")],
    dest: Annotated[Path, typer.Argument(help="new folder for the shards")],
    resolution: Annotated[int | None, typer.Option(help="side in pixels, after a centre crop to a square")] = None,
    limit: Annotated[
        int | None, typer.Option(help="the first N samples; if the source is sorted by class, of each class in turn")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, test, …, if the source has splits")] = None,
    heldout: Annotated[int, typer.Option(help="if it has none: size of a random test split")] = 0,
    split_seed: Annotated[int, typer.Option(help="seed of --heldout")] = 0,
    color: Annotated[str, typer.Option(help="auto (grey if every image is grey), grey or rgb")] = "auto",
    key: Annotated[
        str | None,
        typer.Option(help="the array of an .npz file, or the encoder of a feature folder, if there are several"),
    ] = None,
    labels: Annotated[bool, typer.Option(help="keep the labels")] = True,
    encoding: Annotated[str, typer.Option(help="encoding of images in the shards: png or npy")] = "png",
    shard_size: Annotated[int | None, typer.Option(help="samples per shard; 1,000, fewer if large")] = None,
    filter: Annotated[
        str, typer.Option(help="resize by box, lanczos, or auto (box if the factor is a whole number, else lanczos)")
    ] = "auto",
    pca: Annotated[
        int | None, typer.Option(help="import vectors of this many principal components instead of the samples")
    ] = None,
    pca_rows: Annotated[
        str | None, typer.Option(help="A:B, the rows of the source that give the axes; they are not imported")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="number of processes; default one per core")] = None,
    part: Annotated[
        str | None,
        typer.Option(help="i::n makes only the shards i, i + n, …, for array jobs; run `seal` after all parts"),
    ] = None,
) -> None:
    """Import images or vectors into sealed shards. The same command resumes a stopped import."""
    from entroloop.data.errors import UserError
    from entroloop.data.seeds import parse_part
    from entroloop.data.sources import importer
    from entroloop.data.sources.listing import told
    from entroloop.data.sources.settings import Settings
    from entroloop.data.store import manifest
    from entroloop.launcher.process import StopFlag

    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    settings = Settings(
        resolution, limit, split, heldout, split_seed, color, labels, encoding, shard_size, filter, key, pca, pca_rows
    )
    share = None if part is None else parse_part(part)
    stop = StopFlag()
    if share is not None:
        ignored = importer.import_part(
            source, dest, settings, share, workers=workers, progress=True, stop=lambda: bool(stop)
        )
        note = f" ({told(ignored)})" if ignored else ""
        typer.echo(f"{dest}: part {share} done{note}; when all are: entroloop seal {dest}")
        return
    finished = manifest.is_sealed(dest)
    ignored = importer.import_part(source, dest, settings, workers=workers, progress=True, stop=lambda: bool(stop))
    parts = [set_line(dest, importer.seal_import(dest)), told(ignored), "already imported" if finished else ""]
    typer.echo(", ".join(part for part in parts if part))
