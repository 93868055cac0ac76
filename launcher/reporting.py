"""The commands `report` and `measure`: thin doors to `eval`, which they import only when they run.

entroloop report RUN… --out report.html
entroloop measure GENERATED TRAINING [REFERENCE] [--json]
"""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from entroloop.data.errors import UserError


class Format(StrEnum):
    """What `report` writes."""

    html = "html"
    csv = "csv"
    json = "json"
    png = "png"


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run and sweep folders.", metavar="RUN…")],
    out: Annotated[Path | None, typer.Option(help="File to write (for png: a folder).")] = None,
    form: Annotated[
        Format, typer.Option("--format", help="One page, or the numbers and plots for a paper.")
    ] = Format.html,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again as runs go on, until all are finished.")
    ] = False,
    interval: Annotated[float, typer.Option(min=1, help="Seconds between two looks with --watch.")] = 15.0,
) -> None:
    """Curves, samples and tables of one or many runs, as one page that opens offline."""
    from entroloop.eval import report

    target = out or Path("report" if form is Format.png else f"report.{form}")
    if form is not Format.png and target.is_dir():
        raise UserError(f"--out {target}: is a folder; give a file name such as {target / f'report.{form}'}")
    if form is Format.png and target.is_file():
        raise UserError(f"--out {target}: is a file; plots go into a folder")
    seen: object = None
    while True:
        now = report.state(runs)
        if now != seen:
            found = report.write(runs, target, form, refresh=round(interval) if watch else None)
            seen = now
            unfinished = sum(not run.finished for run in found)
            going = f", {unfinished} not finished" if unfinished else ""
            typer.echo(f"{target}: {len(found)} run{'s' if len(found) != 1 else ''}{going}")
            if not watch or not unfinished:
                break
        time.sleep(interval)
    if watch:
        report.write(runs, target, form)  # once more, without the page reloading itself


def measure_command(
    generated: Annotated[Path, typer.Argument(help="Images or vectors to judge: folder, sealed shards, .npz or .npy.")],
    training: Annotated[Path, typer.Argument(help="What the model was trained on.")],
    reference: Annotated[Path | None, typer.Argument(help="Held-out real data; distances are taken to it.")] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="Feature space: pixel, classifier, inception, inception-paper, dinov2-small, dinov2-large, "
            "dinov2-paper, or your own module:attribute."
        ),
    ] = "pixel",
    classifier: Annotated[Path | None, typer.Option(help="Sealed classifier folder, for --encoder classifier.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Crop and resize images to this side first.")] = None,
    entropy_size: Annotated[int | None, typer.Option(min=2, help="Training points in the entropy estimate.")] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Random subsamples for 95% ranges; 0: none.")] = 0,
    seed: Annotated[int, typer.Option(help="Of subsamples.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Of the encoder: cpu, cuda, cuda:1, …; CUDA if there is any, else the CPU.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """How good, how varied and how copied GENERATED is: every measure, between any two or three sets."""
    from entroloop.eval import compare

    row = compare.compare(
        generated, training, reference, encoder=encoder, classifier=classifier, resolution=resolution,
        entropy_size=entropy_size, resamples=resamples, seed=seed, device=device,
    )  # fmt: skip
    typer.echo(compare.as_json(row) if as_json else compare.as_text(row))
