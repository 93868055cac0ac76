"""`entroloop status`: the generation and phase that a run has reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import Json


def status_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, a sweep or several of them.", show_default=False)],
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print the state again until the run ends.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 5,
) -> None:
    """Show the state of every phase of every generation of a run."""
    from entroloop.data.errors import UserError
    from entroloop.launcher import status

    if watch and as_json:
        raise UserError("--watch: prints tables: leave --json out, or call status --json again yourself")
    if watch:
        status.watch(run, every)
        return
    found = status.inspect(run)
    print(json.dumps(found) if as_json else status.table(found))
