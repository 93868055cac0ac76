"""`entroloop sweep`: a grid of runs, on this machine or as one job array."""

from __future__ import annotations

from typing import Annotated

import typer

from entroloop.launcher.commands.common import ConfigFile, Overrides, Quiet, Verbose


def sweep_command(
    config: ConfigFile,
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit one job array to a SLURM cluster.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a grid of runs side by side (strategy x paradigm x seed), then write one report."""
    if slurm:
        from entroloop.launcher.submit import submit_sweep
        from entroloop.slurm.submit import said

        print(said(*submit_sweep(config, overrides or [])))
        return
    from entroloop.launcher import sweep
    from entroloop.launcher.process import StopFlag, check_alone

    check_alone("sweep", "it starts its runs itself: start it once, or use entroloop sweep --slurm")
    sweep.run(config, overrides or [], StopFlag())
