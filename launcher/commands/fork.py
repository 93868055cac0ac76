"""`entroloop fork`: a new run that begins with the first generations of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import Overrides


def fork_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Name of the new run; its folder is beside the other run.")],
    overrides: Overrides = None,
    generation: Annotated[
        int, typer.Option("--generation", "-g", min=0, help="k: the last generation that the runs share.")
    ] = ...,  # type: ignore[assignment]  # required
) -> None:
    """Begin a run whose generations 0 to k are those of another run. The overrides decide generation k + 1 and later.

    The shared generations are hard links, so they take no space. `entroloop run NEW/config.yaml` goes on.
    """
    from entroloop.data.errors import UserError
    from entroloop.data.runfolder import Layout, read_config
    from entroloop.launcher.config import compose
    from entroloop.launcher.overrides import check_overrides
    from entroloop.launcher.run.fork import forked
    from entroloop.launcher.run.resume import open_run

    saved = read_config(Layout(run))
    check_overrides(overrides or [])
    parent = run.parent if run.name else run.resolve().parent  # the name of `.` is empty
    begun = {**saved, "forked_from": {}, "folder": str(parent), "name": name}
    config = compose(begun, overrides or [], str(run / "config.yaml"))
    config = forked(config, run, generation)
    if config.run_folder.resolve() == run.resolve():
        raise UserError(f"{name}: is the run that is to be forked: choose another name")
    layout = open_run(config)
    print(f"{layout.run}: has generations 0 to {generation} of {run}; entroloop run {layout.config} goes on")
