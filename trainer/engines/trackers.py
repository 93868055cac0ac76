"""Accelerate's trackers behind the interface of `entroloop.trainer.tracking`."""

from __future__ import annotations

import contextlib
import os
import re
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


def _place(name: str, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Makes wandb and mlflow write their files into `folder`, unless the user has chosen a place. Returns options.

    Without this, wandb writes to the working directory, and mlflow to a database there.
    """
    if name == "wandb" and "dir" not in options and not os.environ.get("WANDB_DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        return {"dir": str(folder)}
    if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        import mlflow

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((folder / "mlruns").absolute().as_uri())
    return {}


def start_tracker(
    name: str, project: str, folder: Path, options: Mapping[str, Any]
) -> tuple[Callable[[Mapping[str, float], int], None], Callable[[], None]]:
    """Starts one of Accelerate's trackers. Returns (log numbers at a step, finish). Only rank 0 calls these."""
    found = LOGGER_TYPE_TO_CLASS[name]
    alone = type(found.__name__, (found,), {"main_process_only": False})  # does not ask which rank this is

    def write(numbers: Mapping[str, float], step: int) -> None:
        if name == "mlflow":  # refuses all other characters
            words = {key: key.replace(">=", " from ").replace("<", " below ") for key in numbers}
            numbers = {re.sub(r"[^\w\-. :/]", "_", words[key]): value for key, value in numbers.items()}
        with _a_state():
            tracker.log(dict(numbers), step=step)

    def finish() -> None:
        with _a_state():
            tracker.finish()

    place = _place(name, folder, options)
    with _a_state():
        tracker = alone(project, *([folder] if found.requires_logging_directory else []), **place, **options)
        tracker.start()
    return write, finish
