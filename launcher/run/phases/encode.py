"""The encode phase: the features of a generation's samples, which selection and measures share.

samples  ->  generation/features
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from entroloop.data.runfolder import Step
from entroloop.data.seeds import Part
from entroloop.data.store.blocks import missing
from entroloop.data.store.dataset import Dataset
from entroloop.launcher.run.phase import Phase, Pieces

if TYPE_CHECKING:
    from entroloop.data.features.encoder import Encoder
    from entroloop.launcher.config import Config
    from entroloop.launcher.run.context import Context


def _forecast(config: Config, generation: int) -> str:
    return f"{config.samples} images by {', '.join(config.encoders)}"


def _work(context: Context, step: Step, part: Part | None) -> str:
    dataset = context.dataset(Step(step.generation, "sample"))
    encode_set(context, dataset, step, part)
    return f"{len(dataset)} {context.kind} by {', '.join(context.encoders)}"


def encode_set(context: Context, dataset: Dataset, step: Step, part: Part | None) -> None:
    """Encodes a set, or a part of its shards, into the step's folder. Seals the folder unless a part is given."""
    from entroloop.data.features.blocks import seal_blocks

    encode_part(context, dataset, context.encoders, step, part)
    if part is None:
        folder, made_from = context.layout.of(step), context.made_from
        count, blocks = len(dataset), len(dataset.shard_names)
        context.world.on_main(
            lambda: seal_blocks(count, blocks, context.encoders, folder, made_from=made_from(step)) and None
        )


def encode_part(
    context: Context, dataset: Dataset, encoders: Mapping[str, Encoder], step: Step, part: Part | None
) -> None:
    """Encodes this rank's share. Returns when every rank has encoded its share."""
    from entroloop.data.features.blocks import encode_blocks

    world = context.world
    mine = (part or Part()).split(world.rank, world.size)
    world.agree(
        lambda: encode_blocks(
            lambda number: dataset.shard(number)[0], dataset.shard_counts, encoders, context.layout.of(step), mine,
            show=world.is_main, should_stop=context.should_stop, on_progress=context.on_progress,
        )
    )  # fmt: skip


ENCODE = Phase(
    "encode",
    reads=lambda config, generation: [Step(generation, "sample")],
    decides=lambda config, generation: {"encoders": config.encoders},
    work=_work,
    forecast=_forecast,
    in_parts=True,
    pieces=Pieces(
        lambda config: config.sample_shards, lambda config, folder, shard: not missing(config.encoders, folder, shard)
    ),
    processes="one",
    encodes=True,
    removable=lambda config: config.keep.features == "needed",
)
