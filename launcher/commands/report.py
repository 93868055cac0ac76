"""The commands `report` and `measure`: thin doors to `eval`, which they import only when they run.

entroloop report RUN… --out report.html
entroloop measure GENERATED TRAINING [REFERENCE] [--json]
"""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entroloop.data.errors import UserError
from entroloop.launcher.run import lease

if TYPE_CHECKING:
    from entroloop.eval.report.runs import Run

QUIET = 60.0  # seconds without a change after which a watched sweep that has nothing unfinished is taken to be over


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
        bool,
        typer.Option(
            "--watch",
            help="Write it again as runs go on. Ends when all RUNs are finished runs, or for sweeps when nothing has "
            f"come for {QUIET:.0f} s and all runs in them are finished or have failed. A run whose process was "
            "killed is waited for, as it may go on: one line says when no run shows signs of life. Ctrl-C ends it and "
            "leaves the report as it is.",
        ),
    ] = False,
    interval: Annotated[float, typer.Option(min=1, help="Seconds between two looks with --watch.")] = 15.0,
) -> None:
    """Curves, samples and tables of one or many runs, as one page that opens offline."""
    target = out or Path("report" if form is Format.png else f"report.{form}")
    if watch:
        _watch(runs, target, form, interval)
    else:
        _write(runs, target, form)


def _write(runs: list[Path], target: Path, form: str, refresh: int | None = None) -> list[Run]:
    from entroloop.eval.report import page as report

    found = report.write(runs, target, form, refresh=refresh)
    unfinished = sum(not run.finished for run in found)
    going = f", {unfinished} not finished" if unfinished else ""
    typer.echo(f"{target}: {len(found)} run{'s' if len(found) != 1 else ''}{going}")
    return found


def _watch(runs: list[Path], target: Path, form: str, interval: float) -> None:
    """Writes at every change. Ends at once when every folder is a finished run; else, as a sweep may have runs still to
    begin and a failed run may be run again, when all are finished or failed and QUIET seconds brought nothing new.
    Says once when others have shown no sign of life for QUIET seconds. Raises UserError for a folder that cannot come.
    """
    from entroloop.eval.report import page as report
    from entroloop.eval.report.runs import is_run, run_folders

    for folder in runs:
        if folder.is_file():
            raise UserError(f"{folder}: is a file; give the folder of a run or sweep")
        if not folder.parent.is_dir():
            raise UserError(f"{folder}: not there, and {folder.parent} is no folder to wait for it in; check the name")
    report.make_room(target, form)
    seen: object = None
    beats: object = None
    found: list[Run] = []
    quiet = silent = 0.0
    while True:
        there = [folder for folder in runs if run_folders(folder)]
        now = report.state(there) if there else None
        if now != seen:
            found, seen, quiet, silent = _write(there, target, form, round(interval)), now, 0.0, 0.0
        elif not there and not quiet:
            typer.echo(f"waiting for the first run in {', '.join(map(str, runs))}", err=True)
        if len(there) == len(runs):
            if all(run.finished for run in found) and all(map(is_run, runs)):
                break
            if quiet >= QUIET and all(run.finished or run.failed for run in found):
                break
        beats, before = _heartbeats(found), beats
        silent = silent if beats == before else 0.0
        waiting = [run.name for run in found if not (run.finished or run.failed)]
        if waiting and silent >= QUIET > silent - interval:
            names = ", ".join(waiting)
            typer.echo(f"no sign of life for {QUIET:.0f} s, still waiting for {names}; Ctrl-C ends this", err=True)
        time.sleep(interval)
        quiet += interval
        silent += interval
    report.write(runs, target, form)  # once more, without the page reloading itself


def _heartbeats(runs: list[Run]) -> list[object]:
    """What processes at work on these runs say in their leases: changes every second while one lives."""
    return [lease.read(path) for run in runs for path in sorted(run.folder.glob("*/.lease-*"))]


def measure_command(
    generated: Annotated[
        Path, typer.Argument(help="Images or vectors to judge: folder, shards, .npz, .npy or features.")
    ],
    training: Annotated[Path, typer.Argument(help="What the model was trained on.")],
    reference: Annotated[Path | None, typer.Argument(help="Held-out real data; distances are taken to it.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Which array of an .npz file, or which encoder's of a feature folder, if it has several: one for all "
            "such sets, or repeated, one for each of them."
        ),
    ] = None,
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
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of subsamples and of C_T's cells.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Of the encoder: cpu, cuda, cuda:1, …; CUDA if there is any, else the CPU.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirrored copies of training images count as copies: trained with flips.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """How good, how varied and how copied GENERATED is: every measure, between any two or three sets."""
    from entroloop.eval import compare

    row = compare.compare(
        generated, training, reference, keys=key or [], encoder=encoder, classifier=classifier, resolution=resolution,
        entropy_size=entropy_size, resamples=resamples, seed=seed, device=device, flip=flip,
    )  # fmt: skip
    typer.echo(compare.as_json(row) if as_json else compare.as_text(row))
