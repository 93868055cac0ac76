"""The phases of a run as pure functions: what comes next, where it lives, and what decides its result.

    prepare -> for every generation: select -> train -> sample -> encode -> evaluate

The state of a run is which of its folders are sealed; nothing else is remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL
from entroloop.launcher.config import Config
from entroloop.selection.pool import origins, pool_of

Phase = Literal["prepare", "select", "train", "sample", "encode", "evaluate"]
PHASES: tuple[Phase, ...] = ("select", "train", "sample", "encode", "evaluate")
FOLDERS: dict[Phase, str] = {
    "prepare": "features",
    "select": "selected",
    "train": "weights",
    "sample": "samples",
    "encode": "features",
    "evaluate": "metrics",
}

RANKS = {phase: number for number, phase in enumerate(FOLDERS)}


@functools.total_ordering
@dataclass(frozen=True)
class Step:
    """One phase of one generation; the preparation of the real data is generation -1's only phase.

    Steps are ordered as they are run.
    """

    generation: int
    phase: Phase

    def __str__(self) -> str:
        return "prepare" if self.phase == "prepare" else f"generation {self.generation} {self.phase}"

    def __lt__(self, other: Step) -> bool:
        return (self.generation, RANKS[self.phase]) < (other.generation, RANKS[other.phase])


PREPARE = Step(REAL, "prepare")


def steps(generations: int) -> Iterator[Step]:
    """All phases of a run, in order."""
    yield PREPARE
    for generation in range(generations):
        for phase in PHASES:
            yield Step(generation, phase)


def next_phase(sealed: Callable[[Step], bool], generations: int) -> Step | None:
    """The first phase that is not sealed; None when the run is finished."""
    return next((step for step in steps(generations) if not sealed(step)), None)


@dataclass(frozen=True)
class Layout:
    """Where the files of a run are."""

    run: Path

    def generation(self, generation: int) -> Path:
        return self.run / "real" if generation == REAL else self.run / f"generation_{generation:04d}"

    def of(self, step: Step) -> Path:
        """The folder that the step seals."""
        return self.generation(step.generation) / FOLDERS[step.phase]

    @property
    def config(self) -> Path:
        return self.run / "config.yaml"

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


def read_config(layout: Layout) -> dict[str, Any]:
    """The configuration saved with a run. Raises UserError when the folder is not a run."""
    if not layout.config.is_file():
        raise UserError(f"{layout.run}: not a run (no {layout.config.name}): give a folder that `entroloop run` made")
    with reading(str(layout.config), "damaged: restore it, or start again under another name="):
        saved = yaml.safe_load(layout.config.read_text())
    if not isinstance(saved, dict) or "generations" not in saved:
        raise UserError(f"{layout.config}: damaged: restore it, or start again under another name=")
    return saved


def is_sealed(layout: Layout) -> Callable[[Step], bool]:
    """Whether a step of the run is sealed."""
    return lambda step: manifest.is_sealed(layout.of(step))


def recipes(config: Config) -> dict[Step, str]:
    """For every step a digest of all that decides its result: where two runs agree, they would seal the same bytes.

    It covers the step's own sections of the configuration and the recipes of the steps it reads.
    """
    found: dict[Step, str] = {}
    for step in steps(config.generations):
        found[step] = files.digest(
            {
                "step": str(step),
                "section": _decided_by(config, step),
                "threads": config.threads,
                "inputs": [found[s] for s in inputs(config, step)],
            }
        )
    return found


def inputs(config: Config, step: Step) -> list[Step]:
    """Every earlier step whose sealed folders a step reads, in order.

    All but the preparation read its folders: the classes of the real data decide the shape of a network.
    """
    generation = step.generation
    found: set[Step] = set()
    match step.phase:
        case "prepare":
            return []
        case "select" if generation > 0:
            pool = pool_of(config.loop, generation, config.data.size)
            found = {Step(g, phase) for g in pool.pool if g != REAL for phase in ("sample", "encode")}
            found |= {Step(generation - 1, "select"), *_behind(config, generation - 1)} if pool.keep else set()
        case "train":
            found = {Step(generation, "select"), *_behind(config, generation)}
            found |= {Step(generation - 1, "train")} if config.train.warm_start and generation else set()
        case "sample":
            guide = guide_step(config, generation)
            found = {Step(generation, "train"), *([guide] if guide else [])}
            found |= {Step(generation, "select")} if config.sample.labels == "training" else set()
        case "encode":
            found = {Step(generation, "sample")}
        case "evaluate":
            trained_on = {Step(g, "encode") for g in origins(config.loop, generation, config.data.size) if g != REAL}
            found = {Step(generation, "encode"), Step(generation, "select"), *trained_on}
            found |= _behind(config, generation) if config.train.flip else set()
    return sorted({PREPARE, *found})


def _behind(config: Config, generation: int) -> set[Step]:
    """The steps that hold the images of a training set which is only an index of them."""
    if config.data.selected != "index":
        return set()
    return {Step(g, "sample") for g in origins(config.loop, generation, config.data.size) if g != REAL}


def guide_step(config: Config, generation: int) -> Step | None:
    """The training whose weights guide the sampling of a generation; None where no earlier one of this run does."""
    number = config.sample.guide_generation(generation)
    return Step(number, "train") if number is not None and 0 <= number < generation else None


def parents(config: Config, layout: Layout, step: Step) -> dict[str, Path]:
    """Every sealed folder that a step reads, by its name in the seal's `made_from`.

    `real` is the real data set, `classifier` the one fitted to it, `guide` weights from outside the run; the others
    have the name of their step. The seal of the classifier names `real` alone.
    """
    found = {"real": real_folder(config, layout)}
    if "classifier" in config.encoders:
        found["classifier"] = layout.classifier
    found |= {str(s): layout.of(s) for s in inputs(config, step)}
    if step.phase == "sample" and config.sample.guide and config.sample.guide_generation(step.generation) is None:
        found["guide"] = Path(config.sample.guide)
    return found


def real_folder(config: Config, layout: Layout) -> Path:
    """Where the real data are: the run's own import, or the sealed folder that the configuration names."""
    return layout.images if manifest.is_sealed(layout.images) else Path(config.data.source)


def _if_changed(key: str, section: BaseModel) -> dict[str, Any]:
    """A key that came later counts only where it has another value than the default: recipes stay what they were."""
    value = getattr(section, key)
    same = value == type(section).model_fields[key].default
    return {} if same else {key: section.model_dump(mode="json")[key]}


def _decided_by(config: Config, step: Step) -> dict[str, Any]:
    """The configuration values that decide a step's result, beside those that decide what it reads."""
    dump = config.settled()
    match step.phase:
        case "prepare":
            others = ("size", "buffer", "selected")
            data = {key: value for key, value in config.data.deciding().items() if key not in others}
            return {"data": data, "encoders": config.encoders}
        case "select" if step.generation == 0:
            return {"seed": config.seed, "size": config.data.size, **_if_changed("selected", config.data)}
        case "select":
            section = {key: dump[key] for key in ("seed", "selection")} | _if_changed("selected", config.data)
            section["loop"] = {key: dump["loop"][key] for key in ("paradigm", "candidates")}
            for key in ("fresh", "draw", "balanced", "all_candidates"):
                section["loop"] |= _if_changed(key, config.loop)
            return section
        case "train":
            return {key: dump[key] for key in ("seed", "train", "network")} | _if_changed("buffer", config.data)
        case "sample":
            return {"sample": dump["sample"], "count": config.samples, "seed": config.seed}
        case "encode":
            return {"encoders": config.encoders}
        case "evaluate":
            return {"evaluation": dump["evaluation"], "size": config.data.size}
