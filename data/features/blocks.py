"""Feature blocks on disk: computed once per shard and encoder, shared by selection and measures.

    Dataset + encoders  ->  encode_shards (any part of the shards)  ->  seal_features

A sealed folder holds one `.npy` block per shard and encoder; `data.store.blocks` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.features.encoder import Encoder
from entroloop.data.progress import Progress
from entroloop.data.seeds import Part
from entroloop.data.store import manifest
from entroloop.data.store.blocks import block_name, missing
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.shards import Samples, encode_npy


def encode_shards(
    dataset: Dataset,
    encoders: Mapping[str, Encoder],
    folder: Path,
    part: Part,
    *,
    title: str = "encode",
    show: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Writes the missing blocks of this part's shards.

    Raises Interrupted between shards when `should_stop` returns True.
    """
    mine = [i for i in part.of(len(dataset.shard_names)) if missing(encoders, folder, i)]
    with Progress(title, sum(dataset.shard_counts[i] for i in mine), "img", show=show) as progress:
        on_progress(progress)
        for number in mine:
            if should_stop():
                raise Interrupted(f"encoding stopped before shard {number}; finished blocks are kept")
            samples, _ = dataset.shard(number)
            write_blocks(encoders, folder, number, samples)
            progress.advance(dataset.shard_counts[number])


def write_blocks(encoders: Mapping[str, Encoder], folder: Path, number: int, samples: Samples) -> None:
    """Writes the missing blocks of one shard."""
    for name in missing(encoders, folder, number):
        manifest.put(folder, block_name(name, number), encode_npy(encoders[name](samples)))


def seal_features(
    dataset: Dataset, encoders: Mapping[str, Encoder], folder: Path, made_from: Mapping[str, str]
) -> Manifest:
    """Seals the blocks of all shards. Raises UserError, naming the first missing block, when one is missing."""
    return seal_blocks(len(dataset), len(dataset.shard_names), encoders, folder, made_from=made_from)


def seal_blocks(
    count: int,
    blocks: int,
    encoders: Mapping[str, Encoder],
    folder: Path,
    *,
    about: Mapping[str, Any] | None = None,
    made_from: Mapping[str, str],
) -> Manifest:
    """Seals the features of `count` samples in this number of blocks per encoder. Raises as `seal_features` does.

    about  facts to record beside the encoders
    """
    names = [block_name(name, i) for name in encoders for i in range(blocks)]
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing feature block: encode this shard before sealing")
    known = {name: {"dim": e.dim, "digest": e.digest} for name, e in encoders.items()}
    facts = {"encoders": known, "blocks": blocks, **(about or {})}
    return manifest.seal(folder, "features", count, names, about=facts, made_from=made_from)
