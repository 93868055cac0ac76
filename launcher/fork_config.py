"""The `forked_from` section of a configuration, which `entroloop fork` writes."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from entroloop.data.config import Section


class ForkedFrom(Section):
    """The run whose generations 0 to `generation` a run has as its own. `entroloop fork` and `sweep.fork` write this
    section."""

    run: str = ""
    """Folder of the other run. It is read once, when the run begins."""
    generation: int | None = Field(None, ge=0)
    """k: generations 0 to k are those of the other run; null: the run is no fork."""
    digest: str = ""
    """Digest of all that the other run had sealed up to generation k."""
    config: dict[str, Any] = Field({})
    """Configuration of the other run, which decides generations 0 to k."""
