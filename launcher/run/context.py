"""The context of a phase: a run's configuration, folder and processes, and the results that earlier steps sealed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import Encoder, load_encoder
from entroloop.data.progress import Progress
from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.split import RealSplit, split_real
from entroloop.data.store import manifest
from entroloop.data.store.blocks import encoder_digest, load_features
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import open_set
from entroloop.data.store.shards import REAL
from entroloop.data.world import World
from entroloop.launcher.config import Config
from entroloop.launcher.run import recipes
from entroloop.trainer.tracking import Tracking


@dataclass
class Context:
    """One run in one process of its World. Reading a folder that is not sealed yet raises UserError, naming the folder.

    scratch  folder on this machine's own disk to which training shards are copied first
    overlap  encode every shard as soon as it is sampled
    facts    facts of the step that ran last, for its line of stats.jsonl
    """

    config: Config
    layout: Layout
    world: World
    should_stop: Callable[[], bool] = lambda: False
    on_progress: Callable[[Progress], None] = lambda progress: None
    scratch: Path | None = None
    overlap: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def made_from(self, step: Step) -> dict[str, str]:
        """Returns the step's recipe and the digest of every sealed folder that the step reads, for the step's seal."""
        read = recipes.parents(self.config, self.layout, step)
        return {"recipe": self.recipes[step]} | {name: manifest.read(folder).digest for name, folder in read.items()}

    @functools.cached_property
    def recipes(self) -> dict[Step, str]:
        return recipes.recipes(self.config)

    @functools.cached_property
    def real(self) -> Dataset:
        """The real data set (see `recipes.real_folder`)."""
        return Dataset(recipes.real_folder(self.config, self.layout))

    @property
    def kind(self) -> str:
        """The kind of the samples, for messages: images or vectors."""
        return self.real.manifest.kind

    @functools.cached_property
    def split(self) -> RealSplit:
        first = self.config.at(REAL)  # a fork may have another seed, and the same real training set
        data = first.data
        return split_real(
            len(self.real), data.size, data.heldout, data.labelled, data.trusted,
            split_seed=data.split_seed, run_seed=first.seed,
        )  # fmt: skip

    @functools.cached_property
    def encoders(self) -> dict[str, Encoder]:
        return self.load_encoders(self.config.encoders)

    def load_encoders(self, names: list[str]) -> dict[str, Encoder]:
        """Loads encoders by name. Raises UserError where an encoder has changed since the real data were encoded."""
        folder = self.layout.classifier if manifest.is_sealed(self.layout.classifier) else None
        prepared = self.layout.of(PREPARE)
        found = {}
        for name in names:
            found[name] = load_encoder(name, self.real.shape, classifier=folder, device=self.world.device)
            if manifest.is_sealed(prepared) and found[name].digest != (before := encoder_digest(prepared, name)):
                raise UserError(
                    f"encoder {name}: its digest is {found[name].digest}, that of the real data's features in "
                    f"{prepared} is {before}, so that they do not compare: restore the encoder, or start again under "
                    "another name="
                )
        return found

    def dataset(self, step: Step) -> Dataset:
        """The samples of a generation, or its training set."""
        return open_set(self.layout.of(step))

    def features(self, generation: int, encoder: str) -> NDArray[np.float32]:
        """Features of all real images (REAL) or of all samples of a generation: float32 [N, D]."""
        step = PREPARE if generation == REAL else Step(generation, "encode")
        return load_features(self.layout.of(step), encoder)

    def track(self, values: Mapping[str, Any], prefix: str, generation: int, seen: int) -> None:
        """Sends numbers to the trackers. Their step counts the images of all generations. Only rank 0 calls this."""
        if self.config.tracking.trackers:
            numbers = {**values, "generation": generation}
            self._tracking.log(numbers, prefix, generation * self.config.train.images + seen)

    @functools.cached_property
    def _tracking(self) -> Tracking:
        return Tracking(self.config.tracking, self.layout.run / "tracking")
