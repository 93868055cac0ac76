"""`entroloop latents`: encodes images by a frozen autoencoder, and decodes latents into images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from entroloop.launcher.commands.common import Quiet, Verbose, part_option, set_line


def latents_command(
    source: Annotated[Path, typer.Argument(help="Sealed images; with --decode, sealed latents.", show_default=False)],
    dest: Annotated[Path, typer.Argument(help="New folder.", show_default=False)],
    vae: Annotated[Path, typer.Option(help="Folder of a diffusers AutoencoderKL.", show_default=False)],
    decode: Annotated[bool, typer.Option("--decode", help="Decode latents into images.")] = False,
    part: Annotated[
        Any, part_option(help="i::n makes only the shards i, i + n, …; run once more without --part to seal.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode images by a frozen autoencoder, or decode latents. The same command resumes a stopped conversion."""
    from entroloop.data.store import manifest
    from entroloop.launcher.process import StopFlag, world_from_environment
    from entroloop.trainer.latents import Autoencoder, convert

    stop = StopFlag()
    world = world_from_environment(should_stop=stop)
    autoencoder = Autoencoder(vae, world.device)
    convert(source, dest, autoencoder, back=decode, part=part, should_stop=stop)
    if part is None:
        typer.echo(set_line(dest, manifest.read(dest)))
    else:
        typer.echo(f"{dest}: part {part} done")
