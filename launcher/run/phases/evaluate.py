"""The evaluate phase: one row of measures of a generation.

    features of the samples, of the training set and of held-out real images  ->  generation/metrics/metrics.jsonl

Every rank of the World calls it, with its share of the rows of each set; rank 0 writes.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from entroloop.data.store import manifest
from entroloop.data.store.blocks import encoder_digest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import REAL, Samples
from entroloop.eval.measures.generation import FeatureSets, baseline_row, evaluate_generation
from entroloop.eval.measures.row import Row
from entroloop.launcher.run.inputs import Inputs, share
from entroloop.launcher.run.steps import PREPARE, Step

BLOCK = 1024  # images that are flipped and encoded at a time


def evaluate(inputs: Inputs, step: Step) -> Row:
    """Seals a generation's row, which every rank gets."""
    config, world, generation = inputs.config, inputs.world, step.generation
    selected = inputs.dataset(Step(generation, "select"))
    n = config.evaluation.samples or config.data.size
    sets = {}
    for name in config.evaluation.encoders:
        sets[name] = FeatureSets(
            generated=share(inputs.features(generation, name)[:n], world),
            training=share(inputs.training_features(selected, name), world),
            heldout=share(inputs.features(REAL, name)[inputs.split.heldout], world),
            digest=encoder_digest(inputs.layout.of(PREPARE), name),
            mirrored=_mirrored(inputs, selected, name),
        )
    size, more = config.evaluation.entropy_size or config.data.size, config.evaluation.measures
    row = evaluate_generation(generation, sets, selected.provenance, entropy_size=size, more=more, world=world)
    if generation == 0:
        row = row.model_copy(update={"baseline": baseline_row(sets, entropy_size=size, more=more, world=world)})
    if world.is_main:
        folder = inputs.layout.of(step)
        manifest.add(folder, "metrics.jsonl", lambda file: file.write(row.as_json()))
        manifest.seal(folder, "metrics", n, ["metrics.jsonl"], made_from=inputs.made_from(step))
    return row


def _mirrored(inputs: Inputs, selected: Dataset, encoder: str) -> NDArray[np.float32] | None:
    """Features of this rank's training images flipped, where the model was trained with flips: float32 [n_r, D]."""
    if not inputs.config.train.flip or len(selected.shape) != 3:
        return None
    rows = share(np.arange(len(selected)), inputs.world)
    blocks = [rows[start : start + BLOCK] for start in range(0, max(1, len(rows)), BLOCK)]
    return np.concatenate([inputs.encoders[encoder](_flipped(selected.take(block))) for block in blocks])


def _flipped(images: Samples) -> Samples:
    return cast(Samples, np.ascontiguousarray(images[..., ::-1]))
