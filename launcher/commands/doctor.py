"""`entroloop doctor`: the facts about this machine and installation that a bug report needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import Json


def doctor_command(
    folder: Annotated[Path, typer.Argument(help="Existing folder whose disk is tried: 64 MiB are written.")] = Path(),
    as_json: Json = False,
) -> None:
    """Describe this machine and installation, and try what results rely on. Exit status 1 if something is wrong."""
    from entroloop.launcher import doctor

    found = doctor.examine(folder)
    typer.echo(json.dumps(found) if as_json else doctor.text(found))
    if not doctor.healthy(found):
        raise typer.Exit(1)
