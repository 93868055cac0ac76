"""The section `sweep` of a configuration: a grid of runs."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from entroloop.data.config import Section


class SweepConfig(Section):
    """A grid of runs: every combination of the values under `grid`."""

    grid: dict[str, tuple[Any, ...]] = Field({})
    """Lists of values by dotted configuration key. A value may also be a mapping of such keys, for settings that belong
    together; its own key can then be any name."""
    jobs: int = Field(0, ge=0)
    """Number of runs at the same time, each on one GPU; 0: as many as there are GPUs or, without GPUs, as fit on the
    cores with `threads` threads each."""
    fork: str = ""
    """`RUN@k`: every run of the grid is a fork of this run and begins with generation k + 1."""
