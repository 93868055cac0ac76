"""`entroloop measure GENERATED TRAINING [REFERENCE]`: every measure between sets, in one process or under torchrun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError
from entroloop.eval.catalogue import DRAWS
from entroloop.launcher.commands.common import WHICH, Quiet, Verbose, one_of

FORMATS = ("text", "json", "csv", "latex", "markdown")

if TYPE_CHECKING:
    from entroloop.data.world import World


def measure_command(
    sets: Annotated[
        list[Path],
        typer.Argument(
            metavar="GENERATED TRAINING [REFERENCE]",
            help="Images or vectors: folder, shards, .npz, .npy or features. The set to judge, the set that the model "
            "was trained on, and held-out real data, used for the distances. With --training: any number of sets to "
            "judge.",
            show_default=False,
        ),
    ],
    training: Annotated[
        Path | None, typer.Option(help="The training set; all other sets are then generated ones.", show_default=False)
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="With --training: held-out real data.", show_default=False)
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help=f"{WHICH}. Give it once for all such sets, or once per set."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help=f"Feature space: {', '.join(ENCODERS.built_in)}, or your own module:attribute."),
    ] = "pixel",
    classifier: Annotated[Path | None, typer.Option(help="Sealed classifier folder, for --encoder classifier.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Crop and resize images to this side first.")] = None,
    entropy_size: Annotated[int | None, typer.Option(min=2, help="Training points in the entropy estimate.")] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help=f"Random subsamples for 95% ranges, {DRAWS} or more, better 200; 0: none.")
    ] = 0,
    bootstrap: Annotated[
        int, typer.Option(min=0, help=f"Draws for 95% intervals, {DRAWS} or more, better 200; 0: none.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all draws and of C_T's cells.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="Of the encoder and of distances: cpu, cuda, cuda:1, …; default CUDA, else the CPU."),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Count mirrored training images as copies, for models trained with flips.")
    ] = False,
    form: Annotated[str, typer.Option("--format", help="Of the printed table.", **one_of(FORMATS))] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure the quality, variety and copying of GENERATED: every measure between any two or three sets."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: give one of {', '.join(FORMATS)}")
    if as_json and form not in ("text", "json"):
        raise UserError(f"--json --format {form}: give one of them")
    for name, draws in (("--bootstrap", bootstrap), ("--resamples", resamples)):
        if 0 < draws < DRAWS:
            raise UserError(
                f"{name} {draws}: give {DRAWS} or more, better 200: a single draw has no spread; 0 makes none"
            )
    several = training is not None
    if training is None:
        sets, training, reference = _by_place(sets, reference)
    from entroloop.eval.compare import compare_sets
    from entroloop.eval.printed import printed

    world = _world(device)
    rows = compare_sets(
        sets, training, reference, keys=key or [], encoder=encoder, classifier=classifier, resolution=resolution,
        entropy_size=entropy_size, resamples=resamples, bootstrap=bootstrap, seed=seed, flip=flip, world=world,
        progress=True,
    )  # fmt: skip
    if world.is_main:
        typer.echo(printed(rows, "json" if as_json else form, several=several))


def _by_place(sets: list[Path], reference: Path | None) -> tuple[list[Path], Path, Path | None]:
    """The generated sets, the training set and the reference of a call without --training."""
    if reference is not None:
        raise UserError("--reference: goes with --training; without it, give the reference as the third set")
    if not 2 <= len(sets) <= 3:
        raise UserError("give GENERATED TRAINING [REFERENCE], or any number of generated sets and --training")
    return sets[:1], sets[1], sets[2] if len(sets) == 3 else None


def _world(device: str | None) -> World:
    """The ranks, on the device that --device names."""
    from entroloop.eval.compare import find_device
    from entroloop.launcher.process import place, world_from_environment

    found = find_device(device)
    if found.index is not None and place(os.environ).size > 1:
        raise UserError(f"--device {device}: with several ranks give cuda or cpu: each rank has a device of its own")
    chosen = found if found.type == "cpu" or found.index is not None else None
    return world_from_environment(device=chosen)
