"""`entroloop status`: the generation and phase that a run has reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def status_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run or a sweep.", show_default=False)],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the state of every phase of every generation of a run."""
    from entroloop.launcher import status

    found = status.inspect(run)
    print(json.dumps(found) if json_ else status.table(found))
