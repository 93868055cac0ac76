"""What a phase finds: the configuration, the real data and its split, and what earlier phases sealed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import Encoder, load_encoder
from entroloop.data.split import RealSplit, split_real
from entroloop.data.store import manifest
from entroloop.data.store.blocks import encoder_digest, load_features
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import open_set
from entroloop.data.store.shards import REAL
from entroloop.data.world import World
from entroloop.launcher.config import Config
from entroloop.launcher.preview.disk import Source
from entroloop.launcher.run import steps as phases
from entroloop.launcher.run.ready import check_real
from entroloop.launcher.run.steps import PREPARE, Layout, Step

Number = TypeVar("Number", np.float32, np.int64)


@dataclass
class Inputs:
    """Of one run, in one process of its World. What is not sealed yet raises UserError, naming the folder."""

    config: Config
    layout: Layout
    world: World

    def made_from(self, step: Step) -> dict[str, str]:
        """For the step's seal: its recipe, and the digest of every sealed folder that it reads."""
        read = phases.parents(self.config, self.layout, step)
        return {"recipe": self.recipes[step]} | {name: manifest.read(folder).digest for name, folder in read.items()}

    @functools.cached_property
    def recipes(self) -> dict[Step, str]:
        return phases.recipes(self.config)

    @functools.cached_property
    def real(self) -> Dataset:
        """The real data set (see `phases.real_folder`)."""
        return Dataset(phases.real_folder(self.config, self.layout))

    @property
    def kind(self) -> str:
        """What the samples are, for messages: images or vectors."""
        return self.real.manifest.kind

    @functools.cached_property
    def split(self) -> RealSplit:
        data = self.config.data
        return split_real(
            len(self.real), data.size, data.heldout, data.labelled,
            split_seed=data.split_seed, run_seed=self.config.seed,
        )  # fmt: skip

    @functools.cached_property
    def encoders(self) -> dict[str, Encoder]:
        """Raises UserError where an encoder is another one than when the real data were encoded."""
        folder = self.layout.classifier if manifest.is_sealed(self.layout.classifier) else None
        prepared = self.layout.of(PREPARE)
        found = {}
        for name in self.config.encoders:
            found[name] = load_encoder(name, self.real.shape, classifier=folder, device=self.world.device)
            if manifest.is_sealed(prepared) and found[name].digest != (before := encoder_digest(prepared, name)):
                raise UserError(
                    f"encoder {name}: its digest is {found[name].digest}, that of the real data's features in "
                    f"{prepared} is {before}, so that they do not compare: restore the encoder, or start again under "
                    "another name="
                )
        return found

    def check_real(self) -> None:
        """Raises UserError when the real data cannot serve all that the configuration wants of it."""
        check_real(self.config, Source(len(self.real), self.real.shape, self.real.labelled))

    def dataset(self, step: Step) -> Dataset:
        """The samples of a generation, or its training set."""
        return open_set(self.layout.of(step))

    def features(self, generation: int, encoder: str) -> NDArray[np.float32]:
        """Features of all real images (REAL) or of all samples of a generation: float32 [N, D]."""
        step = PREPARE if generation == REAL else Step(generation, "encode")
        return load_features(self.layout.of(step), encoder)

    def training_features(self, selected: Dataset, encoder: str) -> NDArray[np.float32]:
        """Features of a training set, taken from where its images were first encoded: float32 [N, D]."""
        where = selected.provenance
        out: NDArray[np.float32] | None = None
        for g in np.unique(where.generation):
            rows = where.generation == g
            found = self.features(int(g), encoder)[where.index[rows]]
            if out is None:
                out = np.empty((len(where), found.shape[1]), dtype=np.float32)
            out[rows] = found
        assert out is not None
        return out


def share(rows: NDArray[Number], world: World) -> NDArray[Number]:
    """This rank's rows of an array that every rank holds."""
    return np.array_split(rows, world.size)[world.rank]
