"""`entroloop import`: images or vectors of many formats into sealed shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import set_line


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
    from entroloop.data.sources import importer
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
