"""The train phase trains a network on a generation's training set.

selected; in a warm start, also the weights of the previous generation  ->  generation/weights
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Step
from entroloop.data.seeds import Part, derive_seed
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import Indexed
from entroloop.launcher.run.phase import Phase
from entroloop.launcher.run.phases.select import training_set
from entroloop.selection.pool import training_size
from entroloop.selection.training_set import write_as_shards

if TYPE_CHECKING:
    from entroloop.data.streams.stream import TrainingStream
    from entroloop.data.world import World
    from entroloop.launcher.config import Config
    from entroloop.launcher.run.context import Context
    from entroloop.trainer.network import DenoiserNetwork

log = logging.getLogger(__name__)


def _reads(config: Config, generation: int) -> Iterator[Step]:
    yield from training_set(config, generation)
    if config.train.warm_start and generation:
        yield Step(generation - 1, "train")


def _decides(config: Config, generation: int) -> dict[str, Any]:
    train = config.train.deciding()
    initial = train.pop("initial_weights")
    return {
        **({"initial_weights": initial} if initial and generation == 0 else {}),
        "seed": config.seed,
        "train": train,
        "network": config.network.deciding(),
        "buffer": config.data.buffer,
    }


def _forecast(config: Config, generation: int) -> str:
    images, size = config.train.images, training_size(config.loop, generation, config.data.size)
    return f"{images / 1000:,.1f} kimg on {size} images, {images // config.train.batch:,} steps of {config.train.batch}"


def _fits(config: Config, world: World) -> None:
    from entroloop.trainer.engines.launch import check_launch
    from entroloop.trainer.network import check_attention

    check_launch(config.train, world)
    check_attention(config.network.attention_backend, world.device)


def _work(context: Context, step: Step, part: Part | None) -> str:
    from entroloop.data.streams.choice import open_stream
    from entroloop.trainer import initial, network
    from entroloop.trainer.train import TrainJob, train

    config, world, generation = context.config, context.world, step.generation
    reading = config.data
    found = context.dataset(Step(generation, "select"))
    data = open_stream(
        found if context.scratch is None else _staged(found, context.scratch, world), reading.mode,
        workers=reading.workers, buffer=reading.buffer, memory_share=reading.memory_share,
        skip_damaged=reading.skip_damaged, world=world,
    )  # fmt: skip
    if config.train.labels and data.labels is None:
        raise UserError("train.labels=true: the training set has no labels; set train.labels=false")
    warm: DenoiserNetwork | None = None
    if config.train.warm_start and generation:
        warm = network.load(context.layout.of(Step(generation - 1, "train")))
    made_from = context.made_from(step)
    if config.train.initial_folder and generation == 0:
        classes = context.real.num_classes if config.train.labels else 0
        warm = initial.load(config.train.initial_folder, config.network, data.shape, classes)
        made_from |= {"initial_weights": initial.digest(config.train.initial_folder)}
    job = TrainJob(
        config=config.train, network=config.network, seed=derive_seed(config.seed, generation, "train"),
        num_classes=context.real.num_classes, checkpoints=context.layout.checkpoints(generation),
        weights=context.layout.of(step), stats=context.layout.stats(generation),
        made_from=made_from, title=str(step), warm=warm,
    )  # fmt: skip
    engine = train(
        job, data, world, should_stop=context.should_stop, on_progress=context.on_progress,
        on_stats=lambda line: context.track(line, "train", generation, round(1000 * line["kimg"])),
    )  # fmt: skip
    context.facts |= {"nfe": config.train.images, "engine": engine}
    damaged = _damaged(context, data)
    by = "" if world.size == 1 else f" by {engine} on {world.size} ranks"
    return f"{config.train.images / 1000:.1f} kimg on {len(found)} {context.kind}{by}{damaged}"


def _staged(found: Dataset, scratch: Path, world: World) -> Dataset:
    """Copies a training set to this machine's own disk and opens the copy. An index is copied as shards."""
    copy = scratch / f"entroloop-{found.manifest.digest[:16]}"

    def write() -> None:
        if isinstance(found, Indexed):
            write_as_shards(found, copy)
        else:
            manifest.copy_sealed(found.folder, copy)

    world.agree(lambda: write() if world.local_rank == 0 else None)
    return Dataset(copy)


def _damaged(context: Context, data: TrainingStream) -> str:
    """Counts the samples that `data.skip_damaged` left out on all ranks, and names each damaged sample once."""
    every = [line for lines in context.world.gather_objects(data.damaged) for line in lines]
    if not every:
        return ""
    context.facts["damaged"] = len(every)
    if context.world.is_main:
        for line in sorted(set(every)):
            log.warning("left out: %s", line)
    return f", {len(set(every))} damaged samples left out ({len(every)} times)"


TRAIN = Phase(
    "train", reads=_reads, decides=_decides, work=_work, forecast=_forecast, trains=True, fits=_fits,
    begins=lambda layout, generation: [layout.checkpoints(generation)],
)  # fmt: skip
