"""Every name inside a run's folder, as a function of steps and integers, and the run's configuration as plain values.

RUN/config.yaml, state.json, tracking, slurm, log.txt
RUN/real/{images, classifier, features}                                sealed by `prepare`
RUN/generation_0003/{selected, weights, samples, features, metrics}    sealed, one per phase
RUN/generation_0003/{checkpoints, stats.jsonl, .lease-…, .recipe-…}    unsealed
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entroloop.data import yaml12
from entroloop.data.errors import UserError, reading
from entroloop.data.store.shards import REAL

CONFIG = "config.yaml"
DAMAGED = "damaged: restore it, or start again under another name="
FORMAT = 1  # of configurations; a run of another format is refused
# Phase -> the folder that it seals. A phase that is not listed seals a folder of its own name.
FOLDERS = {
    "prepare": "features",
    "select": "selected",
    "train": "weights",
    "sample": "samples",
    "encode": "features",
    "evaluate": "metrics",
}


@dataclass(frozen=True)
class Step:
    """One phase of one generation. Work that is done once for the real data belongs to generation REAL."""

    generation: int
    phase: str

    def __str__(self) -> str:
        return self.phase if self.generation == REAL else f"generation {self.generation} {self.phase}"


PREPARE = Step(REAL, "prepare")


@dataclass(frozen=True)
class Layout:
    """The paths of a run's files and folders."""

    run: Path

    def generation(self, generation: int) -> Path:
        return self.run / "real" if generation == REAL else self.run / f"generation_{generation:04d}"

    def generation_of(self, folder: Path) -> int:
        """The generation of a folder that a step seals."""
        name = folder.parent.name
        return REAL if name == "real" else int(name.removeprefix("generation_"))

    def of(self, step: Step) -> Path:
        """The folder that the step seals."""
        return self.generation(step.generation) / FOLDERS.get(step.phase, step.phase)

    @property
    def config(self) -> Path:
        return self.run / CONFIG

    @property
    def state(self) -> Path:
        """The file that tells how the last attempt ended."""
        return self.run / "state.json"

    @property
    def log(self) -> Path:
        """The log of all attempts at the run."""
        return self.run / "log.txt"

    @property
    def images(self) -> Path:
        """Real images that the run imported itself."""
        return self.run / "real" / "images"

    @property
    def classifier(self) -> Path:
        return self.run / "real" / "classifier"

    def checkpoints(self, generation: int) -> Path:
        return self.generation(generation) / "checkpoints"

    def stats(self, generation: int) -> Path:
        return self.generation(generation) / "stats.jsonl"

    def lease(self, step: Step, part: str = "0::1") -> Path:
        return self.generation(step.generation) / f".lease-{step.phase}-{part.replace('::', '-of-')}"

    def leases(self, step: Step) -> list[Path]:
        """The lease files of a step and its parts: held ones, and those that dead processes left behind."""
        return sorted(self.generation(step.generation).glob(f".lease-{step.phase}-*"))

    def all_leases(self) -> list[Path]:
        """The lease files of all steps."""
        return sorted([*self.generation(REAL).glob(".lease-*"), *self.run.glob("generation_*/.lease-*")])

    def recipe(self, step: Step) -> Path:
        """The file that names the recipe under which the step's unsealed files were begun."""
        return self.generation(step.generation) / f".recipe-{step.phase}"


def values_at(config: dict[str, Any], generation: int) -> dict[str, Any]:
    """The saved values that decided a generation. In a fork, another run may have decided it."""
    fork = config.get("forked_from") or {}
    if fork.get("generation") is None or generation > fork["generation"]:
        return config
    return values_at(fork["config"], generation)


def read_config(layout: Layout) -> dict[str, Any]:
    """The configuration saved with a run, as plain values.

    Raises UserError when the folder is not a run, or the file is damaged or of another format.
    """
    path = layout.config
    if not path.is_file():
        raise UserError(f"{layout.run}: not a run (no {CONFIG}): give a folder that `entroloop run` made")
    with reading(str(path), DAMAGED):
        text = path.read_text(encoding="utf-8")
    try:
        saved = yaml12.read(text, CONFIG)
    except UserError as error:
        raise UserError(f"{path}: {DAMAGED} ({error})") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("generations"), int):
        raise UserError(f"{path}: {DAMAGED}")
    if saved.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {saved.get('format', 'of before 1')} is not the {FORMAT} that this version of entroloop "
            "reads: use the version that made the run"
        )
    _check_fork(saved, path)
    return saved


def _check_fork(config: dict[str, Any], path: Path, key: str = "forked_from") -> None:
    """The section of a fork, and those of the runs it was forked from, have the types that readers rely on."""
    about = config.get("forked_from")
    if about is None or about == {}:
        return
    if not isinstance(about, dict):
        raise UserError(f"{path}: {key}: must hold keys and values, is {about!r}")
    generation = about.get("generation")
    if generation is None:
        return
    if type(generation) is not int or generation < 0:
        raise UserError(f"{path}: {key}.generation: must be a number from 0 on, is {generation!r}")
    types = {"run": (str, "a folder"), "digest": (str, "a digest"), "config": (dict, "keys and values")}
    for name, (kind, what) in types.items():
        if not isinstance(about.get(name), kind):
            raise UserError(f"{path}: {key}.{name}: must be {what}, is {about.get(name)!r}")
    _check_fork(about["config"], path, f"{key}.config.forked_from")
