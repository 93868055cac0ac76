"""`entroloop import`: images or vectors of many formats into sealed shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from entroloop.launcher.commands import common


def import_command(
    source: Annotated[
        str, typer.Argument(help="digits, mixture, wine, …, hf:NAME, or a file or folder of images or vectors.")
    ],
    dest: Annotated[Path, typer.Argument(help="New folder for the shards.")],
    resolution: common.Resolution = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Only the first N samples; if the source is sorted by class, from each class in turn."),
    ] = None,
    split: common.Split = None,
    heldout: Annotated[int, typer.Option(help="Size of a random test split, if the source has no splits.")] = 0,
    split_seed: Annotated[int, typer.Option(help="Seed of --heldout.")] = 0,
    color: common.Color = "auto",
    key: common.SourceKey = None,
    labels: common.Labels = True,
    encoding: common.Encoding = "png",
    shard_size: common.ShardSize = None,
    filter: common.Filter = "auto",
    pca: Annotated[
        int | None, typer.Option(help="Import vectors of this many principal components instead of the samples.")
    ] = None,
    pca_rows: Annotated[
        str | None,
        typer.Option(help="A:B, the rows of the source to which the axes are fitted; they are not imported."),
    ] = None,
    workers: common.Workers = None,
    part: Annotated[
        Any,
        common.part_option(help="i::n makes only the shards i, i + n, …, for array jobs; run `seal` after all parts."),
    ] = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Import images or vectors into sealed shards. The same command resumes a stopped import."""
    from entroloop.data.sources import importer
    from entroloop.data.sources.listing import told
    from entroloop.data.sources.settings import Settings
    from entroloop.data.store import manifest
    from entroloop.launcher.process import StopFlag

    settings = Settings(
        resolution, limit, split, heldout, split_seed, color, labels, encoding, shard_size, filter, key, pca, pca_rows
    )
    stop = StopFlag()
    if part is not None:
        ignored = importer.import_part(source, dest, settings, part, workers=workers, progress=True, stop=stop)
        note = f" ({told(ignored)})" if ignored else ""
        typer.echo(f"{dest}: part {part} done{note}; when all are: entroloop seal {dest}")
        return
    finished = manifest.is_sealed(dest)
    ignored = importer.import_part(source, dest, settings, workers=workers, progress=True, stop=stop)
    parts = [common.set_line(dest, importer.seal_import(dest)), told(ignored), "already imported" if finished else ""]
    typer.echo(", ".join(part for part in parts if part))
