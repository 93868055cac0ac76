"""`entroloop report RUN… --out report.html`: one page, or the numbers and plots, of one or many runs."""

from __future__ import annotations

import contextlib
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entroloop.data import owners
from entroloop.data.errors import UserError
from entroloop.launcher.commands.common import Quiet, Verbose

if TYPE_CHECKING:
    from entroloop.eval.report.runs import Run

WATCHED, SERVED = 15.0, 2.0  # seconds between two checks
QUIET = 60.0  # seconds without a change after which a watched sweep without unfinished runs counts as over


class ReportFormat(StrEnum):
    """Formats that `report` writes."""

    html = "html"
    csv = "csv"
    json = "json"
    png = "png"


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run and sweep folders.", metavar="RUN…")],
    out: Annotated[Path | None, typer.Option(help="File to write (for png: a folder).")] = None,
    form: Annotated[
        ReportFormat, typer.Option("--format", help="One page, or the numbers and plots for a paper.")
    ] = ReportFormat.html,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Write the report again at every change. Ends when all RUNs are finished runs; for sweeps, when all "
            f"their runs are finished or have failed and nothing has changed for {QUIET:.0f} s. Waits for a run whose "
            "process was killed, because the run may be resumed; one line says when no run shows signs of life. "
            "Ctrl-C ends the command and keeps the report.",
        ),
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Show runs at work on a page that changes by itself, until Ctrl-C. Writes nothing.",
        ),
    ] = False,
    host: Annotated[str, typer.Option(help="Address of --serve; 0.0.0.0 lets other machines see it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; 0: any free port.")] = 8642,
    interval: Annotated[
        float | None,
        typer.Option(
            min=1, help=f"Seconds between two checks for changes: with --watch {WATCHED:g}, with --serve {SERVED:g}."
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Curves, samples and tables of one or many runs, as one page that opens offline."""
    if serve:
        if out or watch or form is not ReportFormat.html:
            raise UserError("--serve: writes no file: leave --out, --format and --watch out")
        _serve(runs, host, port, interval or SERVED)
        return
    target = out or Path("report" if form is ReportFormat.png else f"report.{form}")
    if watch:
        _watch(runs, target, form, interval or WATCHED)
    else:
        _write(runs, target, form)


def _write(runs: list[Path], target: Path, form: str, refresh: int | None = None) -> list[Run]:
    from entroloop.eval.report import page

    found = page.write(runs, target, form, refresh=refresh)
    unfinished = sum(not run.finished for run in found)
    going = f", {unfinished} not finished" if unfinished else ""
    typer.echo(f"{target}: {len(found)} run{'s' if len(found) != 1 else ''}{going}")
    return found


def _serve(runs: list[Path], host: str, port: int, interval: float) -> None:
    """Serves the live page until Ctrl-C. Raises UserError for a folder that cannot appear and for a port in use."""
    from entroloop.eval.report.live import Live
    from entroloop.eval.report.serve import Server
    from entroloop.launcher.status import states

    _check_can_appear(runs)
    with Server(Live(runs, states, interval), host, port) as server, contextlib.suppress(KeyboardInterrupt):
        typer.echo(f"{server.url} shows {', '.join(map(str, runs))}; Ctrl-C ends this")
        server.serve_forever()


def _check_can_appear(runs: list[Path]) -> None:
    """Raises UserError for a folder that is not there and that no run can make."""
    for folder in runs:
        if folder.is_file():
            raise UserError(f"{folder}: is a file; give the folder of a run or sweep")
        if not folder.parent.is_dir():
            raise UserError(f"{folder}: not there, and {folder.parent} is no folder to wait for it in; check the name")


def _watch(runs: list[Path], target: Path, form: str, interval: float) -> None:
    """Writes the report at every change. However this ends, SIGTERM included, no browser goes on reloading the page."""
    from entroloop.eval.report import page

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _write_changes(runs, target, form, interval)
    finally:
        signal.signal(signal.SIGTERM, before)
        if form == ReportFormat.html:
            page.stop_reloading(target)


def _write_changes(runs: list[Path], target: Path, form: str, interval: float) -> None:
    """Writes the report at every change.

    Ends at once when every folder is a finished run. Otherwise ends when all runs are finished or failed and nothing
    has changed for QUIET seconds, because a sweep may begin more runs and a failed run may be run again. Says once when
    the other runs have shown no sign of life for QUIET seconds. Raises UserError for a folder that cannot appear.
    """
    from entroloop.eval.report import page
    from entroloop.eval.report.runs import is_run, run_folders

    _check_can_appear(runs)
    page.make_room(target, form)
    seen: object = None
    beats: object = None
    found: list[Run] = []
    quiet = silent = 0.0
    while True:
        there = [folder for folder in runs if run_folders(folder)]
        now = page.state(there) if there else None
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


def _heartbeats(runs: list[Run]) -> list[object]:
    """Stamps of the leases of the processes at work on these runs. They change every second while a process lives."""
    return [owners.stamp(path) for run in runs for path in sorted(run.folder.glob("*/.lease-*"))]
