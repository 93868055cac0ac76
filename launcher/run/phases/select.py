"""The select phase forms the pool of a generation, chooses from the pool, and writes the training set.

real data, samples of earlier generations, their features  ->  generation/selected
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import naming
from entroloop.data.runfolder import PREPARE, Step
from entroloop.data.seeds import Part, derive_seed, permutation
from entroloop.data.store.shards import REAL
from entroloop.launcher.run.phase import Phase
from entroloop.selection.pool import origins, pool_of, pool_size, training_size
from entroloop.selection.training_set import Candidates, index_selected, write_selected, write_shards

if TYPE_CHECKING:
    from entroloop.launcher.config import Config
    from entroloop.launcher.run.context import Context


def _reads(config: Config, generation: int) -> Iterator[Step]:
    if generation == 0:
        return
    pool = pool_of(config.loop, generation, config.data.size)
    for g in pool.pool:
        if g != REAL:
            yield Step(g, "sample")
            yield Step(g, "encode")
    if pool.keep:
        yield from training_set(config, generation - 1)


def training_set(config: Config, generation: int) -> Iterator[Step]:
    """The steps whose folders hold a generation's training set: its select step, and the samples of an index."""
    yield Step(generation, "select")
    if config.data.selected == "index":
        for g in origins(config.loop, generation, config.data.size):
            if g != REAL:
                yield Step(g, "sample")


def _decides(config: Config, generation: int) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": config.seed, "selected": config.data.selected}
    if generation == 0:
        return found | {"size": config.data.size}
    found |= {"trusted": config.data.trusted}
    return found | {"loop": config.loop.deciding(), "selection": config.selection.deciding()}


def _forecast(config: Config, generation: int) -> str:
    n, loop = config.data.size, config.loop
    if generation == 0:
        return f"{n} real images"
    pool = pool_of(loop, generation, n)
    before = generation - 1
    kept = f", beside the {training_size(loop, before, n)} of generation {before}" if pool.keep else ""
    real = f", {pool.real} real images of generation 0" if pool.real else ""
    fresh = f", {len(pool.fresh)} fresh real images" if pool.fresh else ""
    chosen = "all" if loop.all_candidates else pool.choose
    out = f", {chosen} of {pool_size(loop, pool.pool, n)} candidates" if pool.pool else ""
    return f"{out}{real}{fresh}{kept}".removeprefix(", ")


def _work(context: Context, step: Step, part: Part | None) -> str:
    said, sources, ids = _chosen(context, step)
    data, world, folder = context.config.data, context.world, context.layout.of(step)
    if data.selected == "shards":
        part = Part(world.rank, world.size)
        world.agree(lambda: write_shards(sources, ids, folder, data.shard_size, part, context.should_stop))
    # Rank 0 writes again the shards of other ranks that its view of a shared folder does not show yet.
    world.on_main(lambda: _write(context, step, sources, ids))
    return said


def _chosen(context: Context, step: Step) -> tuple[str, list[Candidates], NDArray[np.int64]]:
    """Returns the text for the log, the candidates, and the ids of the chosen candidates in their concatenation."""
    config, generation = context.config, step.generation
    real = Candidates(context.real, context.split.training, real=True)
    if generation == 0:
        return f"{config.data.size} real {context.kind}", [real], np.arange(config.data.size)
    pool = pool_of(config.loop, generation, config.data.size)
    sources, blocks = [], []
    for g in pool.pool:
        features = context.features(g, config.selection.encoder)
        if g == REAL:
            sources.append(real)
            blocks.append(features[context.split.training])
        else:
            count = config.loop.candidates * config.data.size
            sources.append(Candidates(context.dataset(Step(g, "sample")), np.arange(count)))
            blocks.append(features[:count])
    ids = np.empty(0, np.int64)
    candidates = sum(len(block) for block in blocks)
    if config.loop.all_candidates:
        ids = np.arange(candidates)
    elif pool.choose:
        ids = _choose(context, np.concatenate(blocks), pool.choose, sources, generation)
    for rows in (_kept_real(context, generation, pool.real), np.sort(context.split.fresh[pool.fresh])):
        if len(rows):
            ids = np.concatenate([ids, sum(len(source.rows) for source in sources) + np.arange(len(rows))])
            sources.append(Candidates(context.real, rows, real=True))
    if pool.keep:
        before = Candidates.whole(context.dataset(Step(generation - 1, "select")))
        ids = np.concatenate([np.arange(len(before.rows)), ids + len(before.rows)])
        sources.insert(0, before)
    chosen = f"{pool.choose} of {candidates} by {config.selection.strategy}"
    if config.loop.all_candidates:
        chosen = f"all {candidates} candidates"
    parts = [
        chosen if pool.pool else "",
        f"{pool.real} real of generation 0" if pool.real else "",
        f"{len(pool.fresh)} fresh" if pool.fresh else "",
        f"{len(ids)} in all -> {context.layout.of(step).name}",
    ]
    return ", ".join(filter(None, parts)), sources, ids


def _kept_real(context: Context, generation: int, count: int) -> NDArray[np.int64]:
    """Rows of `loop.keep_real`, drawn anew in every generation: int64 [count], sorted."""
    training = context.split.training
    drawn = permutation(derive_seed(context.config.seed, generation, "keep real"), len(training))
    return np.sort(training[drawn[:count]])


def _choose(
    context: Context, features: NDArray[np.float32], size: int, sources: list[Candidates], generation: int
) -> NDArray[np.int64]:
    """Chooses rows of the candidates' features, int64 [size], and records facts of the choice."""
    from entroloop.selection import select

    selection, loop, world = context.config.selection, context.config.loop, context.world
    options: dict[str, Any] = dict(selection.options)
    rows = world.share(len(features))
    generations = np.concatenate([s.provenance.generation for s in sources])[rows]
    labels = None
    if all(s.labels is not None for s in sources):
        labels = np.concatenate([s.labels for s in sources if s.labels is not None])[rows]
    if loop.draw == "stratified":
        options["stratified"] = True
    if loop.balanced:
        options["per_class"] = True
    real = context.features(REAL, selection.encoder)
    trusted = context.split.trusted if context.config.data.trusted else context.split.training
    trusted = trusted[world.share(len(trusted))]
    known = None if context.real.labels is None else context.real.labels[trusted]
    layout, encoder = context.layout, selection.encoder
    candidates = f"{layout.generation(generation)}: features of the candidates by {encoder}"
    with naming(features=candidates, reference=f"{layout.of(PREPARE)}: features by {encoder}"):
        chosen = select(
            features[rows], size, selection.strategy,
            seed=derive_seed(context.config.seed, generation, "select"), world=world, metric=selection.metric,
            labels=labels, generations=generations, reference=real[trusted], reference_labels=known, **options,
        )  # fmt: skip
    finite = chosen.radii[np.isfinite(chosen.radii)]
    context.facts |= {"radius_median": float(np.median(finite)) if len(finite) else None, **chosen.info}
    return chosen.ids


def _write(context: Context, step: Step, sources: list[Candidates], ids: NDArray[np.int64]) -> None:
    data, folder = context.config.data, context.layout.of(step)
    about: dict[str, Any] = {}
    if context.real.labelled:
        labels = _labels(context, sources, ids)
        histogram = np.bincount(labels[labels >= 0], minlength=context.real.num_classes)
        about = {
            "num_classes": context.real.num_classes,
            "label_histogram": histogram.tolist(),
            "unlabelled": int((labels < 0).sum()),
        }
    made_from = context.made_from(step)
    if data.selected == "index":
        index_selected(
            sources, ids, folder, run=context.layout.run, shard_size=data.shard_size, about=about, made_from=made_from
        )
    else:
        write_selected(sources, ids, folder, shard_size=data.shard_size, about=about, made_from=made_from)


def _labels(context: Context, sources: list[Candidates], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of every chosen candidate, int64 [N]; -1 for samples without a class.

    A training set that mixes real images with such samples has no labels, but the classes of its real images are known.
    """
    real = context.real.labels
    assert real is not None
    every = []
    for source in sources:
        where, labels = source.provenance, source.labels
        if labels is None:
            labels = np.full(len(where), -1)
            labels[where.generation == REAL] = real[where.index[where.generation == REAL]]
        every.append(labels)
    return np.concatenate(every)[ids]


SELECT = Phase("select", reads=_reads, decides=_decides, work=_work, forecast=_forecast, processes="node")
