"""The sample phase draws images or vectors from a generation's weights.

weights, a guide's weights  ->  generation/samples
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.seeds import Part
from entroloop.data.store import manifest
from entroloop.data.store.shards import is_done, read_shard, seal_dataset, shard_name
from entroloop.data.wording import counted, say_once
from entroloop.launcher.run.phase import Phase, Pieces

if TYPE_CHECKING:
    from entroloop.data.world import World
    from entroloop.launcher.config import Config
    from entroloop.launcher.run.context import Context
    from entroloop.trainer.sample_config import SampleConfig


def _reads(config: Config, generation: int) -> Iterator[Step]:
    yield Step(generation, "train")
    if guide := guide_step(config, generation):
        yield guide
    if config.sample.labels == "training":
        yield Step(generation, "select")


def guide_step(config: Config, generation: int) -> Step | None:
    """The training step whose weights guide the sampling; None where no earlier generation of this run is the guide."""
    number = config.sample.guide_generation(generation)
    return Step(number, "train") if number is not None and 0 <= number < generation else None


def is_guided(config: Config, generation: int) -> bool:
    """Whether a generation is sampled with a guide. A guide of the same run must be an earlier generation."""
    return guide_step(config, generation) is not None or bool(config.sample.guide_folder)


def guide_of(config: Config, layout: Layout, generation: int) -> Path | None:
    """The sealed weights that guide one generation; None where the generation is sampled without a guide.

    Raises UserError when the guide is a generation that the run does not have, or its weights are not sealed.
    """
    if folder := config.sample.guide_folder:
        try:
            manifest.read(folder)
        except UserError as error:
            raise UserError(f"sample.guide={folder}: {error}; or give previous, or generation_0000") from error
        return folder
    number = config.sample.guide_generation(generation)
    if number is not None and number >= config.generations:
        raise UserError(f"sample.guide={config.sample.guide}: the run has generations 0 … {config.generations - 1}")
    step = guide_step(config, generation)
    if step is None:
        return None
    manifest.read(layout.of(step))
    return layout.of(step)


def _decides(config: Config, generation: int) -> dict[str, Any]:
    return {"sample": config.sample.deciding(), "count": config.samples, "seed": config.seed}


def _forecast(config: Config, generation: int) -> str:
    calls = config.sample.calls(is_guided(config, generation))
    return f"{config.samples} images x {calls} NFE ({config.sample.sampler})"


def _fits(config: Config, world: World) -> None:
    from entroloop.trainer.network import check_attention, check_precision

    check_precision("sample", config.sample.precision, world.device)
    check_attention(config.network.attention_backend, world.device)


def _work(context: Context, step: Step, part: Part | None) -> str:
    from entroloop.trainer.generate import SamplePlan, generate

    config, world, generation = context.config, context.world, step.generation
    weights, folder = context.layout.of(Step(generation, "train")), context.layout.of(step)
    plan = SamplePlan(config.seed, generation, config.samples, config.sample.shard_size)
    sample, guide = settings_of(context, step)
    all_of_it = part or Part()
    _say_who_idles(world, len(all_of_it.of(len(plan.shards))))
    drawn = generate(
        weights, folder, sample, plan, all_of_it.split(world.rank, world.size), world.device,
        whole=all_of_it, histogram=label_histogram(context, step), guide=guide,
        attention=config.network.attention_backend, title=str(step), show=world.is_main,
        should_stop=context.should_stop, on_progress=context.on_progress, on_shard=_encode_early(context, step),
    )  # fmt: skip
    world.barrier()
    context.facts["nfe"] = sample.nfe * sum(world.gather_counts(drawn))
    if part is None:
        about = {"num_classes": context.real.num_classes} if config.train.labels else {}
        world.on_main(lambda: seal_dataset(folder, about=about, made_from=context.made_from(step)) and None)
    return f"{plan.count} {context.kind}, {sample.nfe} NFE" + ("" if part is None else f", part {part}")


def settings_of(context: Context, step: Step) -> tuple[SampleConfig, Path | None]:
    """The settings with which a generation is sampled, and the sealed weights of its guide if it has one."""
    guide = guide_of(context.config, context.layout, step.generation)
    sample = context.config.sample
    return (sample if guide else sample.model_copy(update={"guide": None})), guide


def _encode_early(context: Context, step: Step) -> Callable[[int], None]:
    """Returns a function that, with `overlap`, encodes a shard once it is written, while the next is being sampled."""
    if not context.overlap:
        return lambda number: None
    from entroloop.data.features.blocks import write_blocks

    samples, folder = context.layout.of(step), context.layout.of(Step(step.generation, "encode"))
    encoders = context.encoders

    def encode(number: int) -> None:
        write_blocks(encoders, folder, number, read_shard(samples / shard_name(number))[0])

    return encode


def label_histogram(context: Context, step: Step) -> NDArray[np.int64] | None:
    """Frequencies of the classes to sample, by `sample.labels`: counts, int64 [classes]; None for equal frequencies."""
    rule = context.config.sample.labels
    if rule == "balanced" or not context.config.train.labels:
        return None
    source = context.real if rule == "real" else context.dataset(Step(step.generation, "select"))
    assert source.labels is not None
    return np.bincount(source.labels, minlength=context.real.num_classes)


def _say_who_idles(world: World, shards: int) -> None:
    """Logs once that there are fewer shards than ranks."""
    idle = world.size - shards
    if idle > 0 and world.is_main:
        say_once(f"sampling: {counted(shards, 'shard')} for {world.size} ranks, {idle} idle: lower sample.shard_size")


SAMPLE = Phase(
    "sample",
    reads=_reads,
    outside=lambda config, generation: {"guide": folder} if (folder := config.sample.guide_folder) else {},
    decides=_decides,
    work=_work,
    forecast=_forecast,
    in_parts=True,
    pieces=Pieces(lambda config: config.sample_shards, lambda config, folder, shard: is_done(folder, shard)),
    processes="one",
    ready=lambda config, layout: guide_of(config, layout, 0),
    fits=_fits,
    begins=lambda layout, generation: [layout.of(Step(generation, "encode"))],  # written by `overlap`
    removable=lambda config: config.keep.samples == "needed",
    spared=1,  # the report shows its images
)
