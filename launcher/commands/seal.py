"""`entroloop seal`: seals an import that was made in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import Quiet, Verbose, set_line


def seal_command(
    folder: Annotated[Path, typer.Argument(help="Folder of an import whose parts are all done.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Seal an import that was made in parts."""
    from entroloop.data.sources import importer

    typer.echo(set_line(folder, importer.seal_import(folder)))
