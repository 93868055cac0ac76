"""`entroloop encode`: the features of any source, sealed, in the order of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.data.catalogue import ENCODERS
from entroloop.data.wording import counted
from entroloop.launcher.commands import common


def encode_command(
    source: common.Source,
    encoder: Annotated[
        list[str], typer.Option(help=f"{', '.join(ENCODERS.built_in)}, or module:attribute; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the features.")],
    resolution: common.Resolution = None,
    split: common.Split = None,
    color: common.Color = "auto",
    key: common.SourceKey = None,
    classifier: Annotated[
        Path | None, typer.Option(help="RUN/real/classifier, for the encoder classifier.", show_default=False)
    ] = None,
    part: common.Part = None,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Compute the features of any source. The same command resumes a stopped one."""
    from entroloop.data.encode import encode
    from entroloop.data.store import manifest
    from entroloop.launcher.process import StopFlag, world_from_environment

    stop = StopFlag()
    world = world_from_environment(should_stop=stop)
    finished = manifest.is_sealed(out)
    sealed = encode(
        source, out, encoder, resolution=resolution, split=split, color=color, key=key, classifier=classifier,
        part=part, world=world, progress=True, stop=stop,
    )  # fmt: skip
    if not world.is_main:
        return
    if sealed is None:
        typer.echo(f"{out}: part {part} done; when all are, run the command without --part")
        return
    widths = ", ".join(f"{name} [{facts['dim']}]" for name, facts in sealed.about["encoders"].items())
    again = ", already encoded" if finished else ""
    typer.echo(f"{out}: {counted(sealed.count, 'row')} of {widths}{again}")
