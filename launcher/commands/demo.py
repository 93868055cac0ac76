"""`entroloop demo`: the sweep of the packaged demo."""

from __future__ import annotations

from entroloop.launcher.commands.common import Overrides, Quiet, Verbose
from entroloop.launcher.commands.sweep import sweep_command
from entroloop.launcher.packaged import DEMO, file_of


def demo_command(overrides: Overrides = None, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Run the demo on embedded data: a loop that collapses, its rescue by selection, and a report, in two minutes."""
    path = file_of(DEMO)
    assert path is not None
    sweep_command(path, overrides)
