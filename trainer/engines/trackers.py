"""Accelerate's trackers behind the interface of `entroloop.trainer.tracking`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS


@contextlib.contextmanager
def _a_state() -> Iterator[None]:
    """Accelerate's state, which its trackers need; made for this context only if no engine has made it."""
    made = not PartialState._shared_state
    if made:
        PartialState(cpu=True)
    try:
        yield
    finally:
        if made:
            PartialState._reset_state()


def start_tracker(
    name: str, project: str, folder: Path, options: Mapping[str, Any]
) -> tuple[Callable[[Mapping[str, float], int], None], Callable[[], None]]:
    """Starts one of Accelerate's trackers. Returns (log numbers at a step, finish). Only rank 0 calls these."""
    found = LOGGER_TYPE_TO_CLASS[name]
    alone = type(found.__name__, (found,), {"main_process_only": False})  # does not ask which rank this is

    def write(numbers: Mapping[str, float], step: int) -> None:
        with _a_state():
            tracker.log(dict(numbers), step=step)

    def finish() -> None:
        with _a_state():
            tracker.finish()

    with _a_state():
        tracker = alone(project, *([folder] if found.requires_logging_directory else []), **options)
        tracker.start()
    return write, finish
