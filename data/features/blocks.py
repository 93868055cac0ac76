"""Feature blocks on disk: computed once per shard and encoder, shared by selection and measures.

    samples + encoders  ->  encode_blocks (any part of the blocks)  ->  seal_blocks

A block has the samples of one shard. A sealed folder holds one `.npy` file per block and encoder; `data.store.blocks`
reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entroloop.data.devices import ahead
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.features.encoder import CPU, Encoder
from entroloop.data.progress import Progress
from entroloop.data.seeds import Part
from entroloop.data.store import manifest
from entroloop.data.store.blocks import block_name, missing
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.shards import Samples, encode_npy


def encode_blocks(
    read: Callable[[int], Samples],
    counts: Sequence[int],
    encoders: Mapping[str, Encoder],
    folder: Path,
    part: Part,
    *,
    unit: str = "img",
    show: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Writes the missing blocks of a part. While encoders compute, a thread reads the samples of the next block.

    read    returns the samples of the block of this number
    counts  samples of every block

    Raises Interrupted between blocks when `should_stop` returns True.
    """
    mine = part.of(len(counts))
    todo = [number for number in mine if missing(encoders, folder, number)]
    total, left = (sum(counts[number] for number in numbers) for numbers in (mine, todo))
    with Progress("encode", total, unit, done=total - left, show=show) as progress:
        on_progress(progress)
        for number, samples in zip(todo, ahead(map(read, todo), CPU, depth=1), strict=True):
            if should_stop():
                raise Interrupted(f"{folder}: stopped before block {number}; run the same command again to continue")
            write_blocks(encoders, folder, number, samples)
            progress.advance(counts[number])


def write_blocks(encoders: Mapping[str, Encoder], folder: Path, number: int, samples: Samples) -> None:
    """Writes the missing features of one block of samples."""
    for name in missing(encoders, folder, number):
        manifest.put(folder, block_name(name, number), encode_npy(encoders[name](samples)))


def seal_blocks(
    count: int,
    blocks: int,
    encoders: Mapping[str, Encoder],
    folder: Path,
    *,
    about: Mapping[str, Any] | None = None,
    made_from: Mapping[str, str],
) -> Manifest:
    """Seals the features of `count` samples in this number of blocks per encoder.

    about  facts to record beside the encoders

    Raises UserError, naming the first missing block, when one is missing.
    """
    names = [block_name(name, i) for name in encoders for i in range(blocks)]
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing feature block: encode this shard before sealing")
    known = {name: {"dim": e.dim, "digest": e.digest} for name, e in encoders.items()}
    facts = {"encoders": known, "blocks": blocks, **(about or {})}
    return manifest.seal(folder, "features", count, names, about=facts, made_from=made_from)
