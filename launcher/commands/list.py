"""`entroloop list FOLDER`: every run in a folder, its state and its last row of measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import Json


def list_command(
    folder: Annotated[Path, typer.Argument(help="Folder of runs or sweeps, or a run.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs in a folder, with their state and last measures."""
    from entroloop.launcher import status

    found = status.listed(folder)
    typer.echo(json.dumps(found) if as_json else status.list_table(found))
