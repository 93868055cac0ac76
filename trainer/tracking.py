"""Experiment trackers: TensorBoard, wandb and others show a run's statistics and measures.

    stats line, metrics row  ->  flat numbers by name  ->  Accelerate's trackers or the user's own, on rank 0

A tracker only watches a run. If a tracker fails, the run goes on without it and logs a warning.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from entroloop.data.config import PATH, Named, Section
from entroloop.data.errors import UserError
from entroloop.data.paths import expanded
from entroloop.trainer.catalogue import TRACKERS

log = logging.getLogger(__name__)

TrackerName = Annotated[str, Named(TRACKERS)]


class TrackingConfig(Section):
    """Where a run's statistics are shown. May change when a run is resumed."""

    trackers: tuple[TrackerName, ...] = ()
    """Any of Accelerate's trackers by name, or your own; none by default."""
    project: str = "entroloop"
    """The tracker's project."""
    folder: Annotated[str | None, PATH] = None
    """Folder of trackers that write files; null: `tracking` in the run's folder."""
    options: dict[TrackerName, dict[str, Any]] = Field({})
    """Keyword arguments for the start of each tracker: `{wandb: {name: mine, mode: offline}}`."""


def check_installed(config: TrackingConfig) -> None:
    """Raises UserError when a tracker's library is missing."""
    for name in config.trackers:
        library = TRACKERS.facts(name).library
        if library and importlib.util.find_spec(library) is None:
            raise UserError(f"tracking.trackers: {name} is not installed: pip install {library}")


def flat(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The finite numbers by path, `prefix/a/b`. Every other value is left out."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}/{key}"] = float(value)
    return found


class Tracking:
    """A run's trackers, started when something is first logged. Only rank 0 makes one.

    A tracker is a function (name, project, folder, options) -> (log, finish). log(numbers, images) is called with
    numbers by name, and finish() is called at the end.
    """

    def __init__(self, config: TrackingConfig, folder: Path) -> None:
        check_installed(config)
        self.config, self.folder = config, Path(expanded(config.folder)) if config.folder else folder
        self._trackers: dict[str, Any] | None = None

    def log(self, values: Mapping[str, Any], prefix: str, images: int) -> None:
        """Passes the numbers to every tracker; the step is `images`, trained on so far over all generations."""
        if self._trackers is None:
            self._trackers = dict.fromkeys(self.config.trackers)
            atexit.register(self.finish)
        numbers = flat(values, prefix)
        for name in list(self._trackers):
            try:
                if self._trackers[name] is None:
                    options = self.config.options.get(name, {})
                    self._trackers[name] = TRACKERS.load(name)(name, self.config.project, self.folder, options)
                self._trackers[name][0](numbers, images)
            except Exception as error:  # no error of a service's client may end the training
                log.warning("tracker %s is left out from here on: %s: %s", name, type(error).__name__, error)
                del self._trackers[name]

    def finish(self) -> None:
        for _, finish in filter(None, (self._trackers or {}).values()):
            finish()
        self._trackers = None
