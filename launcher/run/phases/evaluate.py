"""The evaluate phase: one row of measures of a generation.

features of the samples, of the training set and of held-out real images  ->  generation/metrics/metrics.jsonl
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from entroloop.data.runfolder import PREPARE, Step
from entroloop.data.store import manifest
from entroloop.data.store.blocks import encoder_digest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import REAL, Samples
from entroloop.eval.catalogue import space
from entroloop.launcher.run.phase import Phase
from entroloop.launcher.run.phases.select import training_set
from entroloop.selection.catalogue import STRATEGIES
from entroloop.selection.pool import origins

if TYPE_CHECKING:
    from entroloop.data.seeds import Part
    from entroloop.data.world import World
    from entroloop.eval.measures.row import Row
    from entroloop.launcher.config import Config
    from entroloop.launcher.run.context import Context

Number = TypeVar("Number", np.float32, np.int64)
NOT_MEASURED = "not measured: evaluation.generations leaves it out"
log = logging.getLogger(__name__)
BLOCK = 1024  # images that are flipped and encoded at a time


def _reads(config: Config, generation: int) -> Iterator[Step]:
    if not config.evaluation.measures_generation(generation):
        return
    yield Step(generation, "encode")
    for g in origins(config.loop, generation, config.data.size):
        if g != REAL:
            yield Step(g, "encode")
    if config.train.flip:
        yield from training_set(config, generation)
    else:
        yield Step(generation, "select")


def _decides(config: Config, generation: int) -> dict[str, Any]:
    if not config.evaluation.measures_generation(generation):
        return {"measured": False}
    evaluation = config.evaluation.deciding()
    del evaluation["generations"]
    return {"evaluation": evaluation, "size": config.data.size}


def _forecast(config: Config, generation: int) -> str:
    if not config.evaluation.measures_generation(generation):
        return NOT_MEASURED
    return f"samples 0 … {(config.evaluation.samples or config.data.size) - 1}"


def _work(context: Context, step: Step, part: Part | None) -> str:
    if not context.config.evaluation.measures_generation(step.generation):
        context.world.on_main(lambda: _seal(context, step, 0, None))
        return NOT_MEASURED
    row = evaluate(context, step)
    if context.world.is_main:
        _warn_of_defects(context.config, row)
        context.track(row.as_dict(), "metrics", step.generation, context.config.train.images)
    first = context.config.evaluation.encoders[0]
    measures = row.measures[first]
    where = space(first, context.kind == "vectors")
    return f"FD {measures['frechet_distance']:.3g}, GS {measures['generalization_score']:.3g} in {where} space"


def _warn_of_defects(config: Config, row: Row) -> None:
    """Logs a warning if the next selection prefers rows that are far from each other, and generated ones are."""
    strategy, encoder = config.selection.strategy, config.selection.encoder
    gap = row.value(encoder, "spread_gap")
    if STRATEGIES.facts(strategy).spreads and gap is not None and gap > 0 and row.generation != config.generations - 1:
        log.warning(
            "generation %s: its samples are more spread than real data (spread gap %+.2g in %s features), so %s "
            "prefers defects to real samples: see docs/measures.md#the-spread-gap; random and herding do not",
            row.generation, gap, encoder, strategy,
        )  # fmt: skip


def evaluate(context: Context, step: Step) -> Row:
    """Computes and seals a generation's row of measures. Returns the row on every rank."""
    from entroloop.eval.measures.generation import FeatureSets, baseline_row, evaluate_generation

    config, world, generation = context.config, context.world, step.generation
    selected = context.dataset(Step(generation, "select"))
    n = config.evaluation.samples or config.data.size
    sets = {}
    for name in config.evaluation.encoders:
        sets[name] = FeatureSets(
            generated=_mine(world, context.features(generation, name)[:n]),
            training=_mine(world, _training_features(context, selected, name)),
            heldout=_mine(world, context.features(REAL, name)[context.split.heldout]),
            digest=encoder_digest(context.layout.of(PREPARE), name),
            mirrored=_mirrored(context, selected, name),
        )
    size, more = config.evaluation.entropy_size or config.data.size, config.evaluation.measures
    row = evaluate_generation(generation, sets, selected.provenance, entropy_size=size, more=more, world=world)
    if generation == 0:
        row = row.model_copy(update={"baseline": baseline_row(sets, entropy_size=size, more=more, world=world)})
    world.on_main(lambda: _seal(context, step, n, row))
    return row


def _seal(context: Context, step: Step, n: int, row: Row | None) -> None:
    folder = context.layout.of(step)
    names = [] if row is None else ["metrics.jsonl"]
    if row is not None:
        manifest.put(folder, names[0], row.as_json())
    manifest.seal(folder, "metrics", n, names, made_from=context.made_from(step))


def _mine(world: World, rows: NDArray[Number]) -> NDArray[Number]:
    return rows[world.share(len(rows))]


def _training_features(context: Context, selected: Dataset, encoder: str) -> NDArray[np.float32]:
    """Features of a training set, read from the folders where its images were first encoded: float32 [N, D]."""
    where = selected.provenance
    out: NDArray[np.float32] | None = None
    for g in np.unique(where.generation):
        rows = where.generation == g
        found = context.features(int(g), encoder)[where.index[rows]]
        if out is None:
            out = np.empty((len(where), found.shape[1]), dtype=np.float32)
        out[rows] = found
    assert out is not None
    return out


def _mirrored(context: Context, selected: Dataset, encoder: str) -> NDArray[np.float32] | None:
    """Features of this rank's training images, flipped: float32 [n_r, D]; None for vectors and without `train.flip`."""
    if not context.config.train.flip or len(selected.shape) != 3:
        return None
    rows = _mine(context.world, np.arange(len(selected)))
    blocks = [rows[start : start + BLOCK] for start in range(0, max(1, len(rows)), BLOCK)]
    flipped = (cast(Samples, np.ascontiguousarray(selected.take(block)[..., ::-1])) for block in blocks)
    return np.concatenate([context.encoders[encoder](images) for images in flipped])


EVALUATE = Phase(
    "evaluate", reads=_reads, decides=_decides, work=_work, forecast=_forecast, processes="node", encodes=True
)
