"""The select phase: the pool of a generation, the choice out of it, and the training set that comes of it.

    real data, samples of earlier generations, their features  ->  generation/selected

Every rank of the World calls it; rank 0 writes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.seeds import derive_seed
from entroloop.data.store.shards import REAL
from entroloop.launcher.run.inputs import Inputs, share
from entroloop.launcher.run.steps import Step
from entroloop.selection import select as choose
from entroloop.selection.pool import pool_of
from entroloop.selection.training_set import Source, index_selected, write_selected


def select_training_set(inputs: Inputs, step: Step) -> tuple[str, dict[str, Any]]:
    """Seals the training set of a generation; returns what is worth saying, and facts for its line of stats.jsonl."""
    config, generation = inputs.config, step.generation
    folder = inputs.layout.of(step)
    if generation == 0:
        if inputs.world.is_main:
            source = Source(inputs.real, inputs.split.training, real=True)
            ids = np.arange(config.data.size)
            _write(inputs, step, [source], ids)
        return f"{config.data.size} real {inputs.kind}", {}
    pool = pool_of(config.loop, generation, config.data.size)
    sources, blocks = [], []
    for g in pool.pool:
        features = inputs.features(g, config.selection.encoder)
        if g == REAL:
            sources.append(Source(inputs.real, inputs.split.training, real=True))
            blocks.append(features[inputs.split.training])
        else:
            count = config.loop.candidates * config.data.size
            sources.append(Source(inputs.dataset(Step(g, "sample")), np.arange(count)))
            blocks.append(features[:count])
    ids = np.empty(0, np.int64)
    facts: dict[str, Any] = {}
    candidates = sum(len(block) for block in blocks)
    if config.loop.all_candidates:
        ids = np.arange(candidates)
    elif pool.choose:
        ids, facts = _choose(inputs, np.concatenate(blocks), pool.choose, sources, generation)
    if pool.fresh:
        sources.append(Source(inputs.real, np.sort(inputs.split.fresh[pool.fresh]), real=True))
        ids = np.concatenate([ids, candidates + np.arange(len(pool.fresh))])
    if pool.keep:
        before = Source.whole(inputs.dataset(Step(generation - 1, "select")))
        ids = np.concatenate([np.arange(len(before.rows)), ids + len(before.rows)])
        sources.insert(0, before)
    if inputs.world.is_main:
        _write(inputs, step, sources, ids)
    fresh = f" and {len(pool.fresh)} fresh" if pool.fresh else ""
    chosen = f"{pool.choose} of {candidates} by {config.selection.strategy}"
    if config.loop.all_candidates:
        chosen = f"all {candidates} candidates"
    return f"{chosen}{fresh}, {len(ids)} in all -> {folder.name}", facts


def _choose(
    inputs: Inputs, features: NDArray[np.float32], size: int, sources: list[Source], generation: int
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Rows of the candidates' features that are chosen, int64 [size], and what to note of them."""
    selection, loop, world = inputs.config.selection, inputs.config.loop, inputs.world
    options: dict[str, Any] = dict(selection.options)
    rows = share(np.arange(len(features)), world)
    generations = np.concatenate([s.provenance.generation for s in sources])[rows]
    labels = None
    if all(s.labels is not None for s in sources):
        labels = np.concatenate([s.labels for s in sources if s.labels is not None])[rows]
    if loop.draw == "stratified":
        options["stratified"] = True
    if loop.balanced:
        options["per_class"] = True
    real = inputs.features(REAL, selection.encoder)[inputs.split.training]
    chosen = choose(
        features[rows], size, selection.strategy,
        seed=derive_seed(inputs.config.seed, generation, "select"), world=world, metric=selection.metric,
        labels=labels, generations=generations, reference=real, **options,
    )  # fmt: skip
    ids: NDArray[np.int64] = np.asarray(chosen.ids)
    finite = np.asarray(chosen.radii)[np.isfinite(np.asarray(chosen.radii))]
    return ids, {"radius_median": float(np.median(finite)) if len(finite) else None, **chosen.info}


def _write(inputs: Inputs, step: Step, sources: list[Source], ids: NDArray[np.int64]) -> None:
    data, folder = inputs.config.data, inputs.layout.of(step)
    about: dict[str, Any] = {}
    if inputs.real.labelled:
        labels = _labels(inputs, sources, ids)
        histogram = np.bincount(labels[labels >= 0], minlength=inputs.real.num_classes)
        about = {
            "num_classes": inputs.real.num_classes,
            "label_histogram": histogram.tolist(),
            "unlabelled": int((labels < 0).sum()),
        }
    made_from = inputs.made_from(step)
    if data.selected == "index":
        index_selected(
            sources, ids, folder, run=inputs.layout.run, shard_size=data.shard_size, about=about, made_from=made_from
        )
    else:
        write_selected(sources, ids, folder, shard_size=data.shard_size, about=about, made_from=made_from)


def _labels(inputs: Inputs, sources: list[Source], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of every chosen candidate, -1 of samples without one: int64 [N].

    A training set that mixes real images with such samples has no labels, but its real images are still known.
    """
    real = inputs.real.labels
    assert real is not None
    every = []
    for source in sources:
        where, labels = source.provenance, source.labels
        if labels is None:
            labels = np.full(len(where), -1)
            labels[where.generation == REAL] = real[where.index[where.generation == REAL]]
        every.append(labels)
    return np.concatenate(every)[ids]
