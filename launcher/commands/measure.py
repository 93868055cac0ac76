"""`entroloop measure GENERATED TRAINING [REFERENCE]`: every measure between any two or three sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.data.catalogue import ENCODERS


def measure_command(
    generated: Annotated[
        Path, typer.Argument(help="Images or vectors to judge: folder, shards, .npz, .npy or features.")
    ],
    training: Annotated[Path, typer.Argument(help="The images or vectors that the model was trained on.")],
    reference: Annotated[Path | None, typer.Argument(help="Held-out real data, used for the distances.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="The array of an .npz file, or the encoder of a feature folder, if there are several. Give it once "
            "for all such sets, or once per set."
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help=f"Feature space: {', '.join(ENCODERS.built_in)}, or your own module:attribute."),
    ] = "pixel",
    classifier: Annotated[Path | None, typer.Option(help="Sealed classifier folder, for --encoder classifier.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Crop and resize images to this side first.")] = None,
    entropy_size: Annotated[int | None, typer.Option(min=2, help="Training points in the entropy estimate.")] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Random subsamples for 95% ranges; 0: no ranges.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the subsamples and of C_T's cells.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Device of the encoder: cpu, cuda, cuda:1, …; default CUDA, else the CPU.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Count mirrored training images as copies, for models trained with flips.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the quality, variety and copying of GENERATED: every measure between any two or three sets."""
    from entroloop.eval import compare

    row = compare.compare(
        generated, training, reference, keys=key or [], encoder=encoder, classifier=classifier, resolution=resolution,
        entropy_size=entropy_size, resamples=resamples, seed=seed, device=device, flip=flip,
    )  # fmt: skip
    typer.echo(compare.as_json(row) if as_json else compare.as_text(row))
