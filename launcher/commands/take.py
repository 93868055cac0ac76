"""`entroloop take SOURCE IDS.npy DEST`: chosen rows of any source as shards, images, an array or a list of keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from entroloop.data.wording import counted
from entroloop.launcher.commands import common

if TYPE_CHECKING:
    from entroloop.data.take import Form


def take_command(
    source: common.Source,
    ids: Annotated[Path, typer.Argument(help="Rows of the source: integers [M], .npy, as select writes them.")],
    dest: Annotated[Path, typer.Argument(help="New folder (shards, folder) or file (npz, keys).")],
    form: common.As = "shards",
    resolution: common.Resolution = None,
    split: common.Split = None,
    color: common.Color = "auto",
    key: common.SourceKey = None,
    labels: common.Labels = True,
    encoding: common.Encoding = "png",
    shard_size: common.ShardSize = None,
    filter: common.Filter = "auto",
    workers: common.Workers = None,
    part: common.Part = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Write chosen rows of any source. The same command resumes a stopped one."""
    from entroloop.data.sources.settings import Settings
    from entroloop.data.take import take
    from entroloop.launcher.process import StopFlag

    settings = Settings(
        resolution=resolution, split=split, color=color, labels=labels, encoding=encoding, shard_size=shard_size,
        filter=filter, key=key,
    )  # fmt: skip
    chosen = take(
        source, ids, dest, cast("Form", form), settings=settings, part=part, workers=workers, progress=True,
        stop=StopFlag(),
    )  # fmt: skip
    if part is None:
        typer.echo(f"{dest}: {counted(chosen, 'sample')} of {source} as {form}")
    else:
        typer.echo(f"{dest}: part {part} done; when all are, run the command without --part")
