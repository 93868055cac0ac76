"""Shards -> feature blocks on disk, computed once and shared by selection and measures.

    Dataset + encoders  ->  encode_shards (any part of the shards)  ->  seal_features  ->  load_features

A sealed folder holds one `.npy` block a shard and encoder. N samples, D features.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.features.encoder import Encoder
from entroloop.data.plan import Part
from entroloop.data.progress import Progress
from entroloop.data.store import manifest
from entroloop.data.store.shards import Dataset, Samples


def block_name(encoder: str, shard: int) -> str:
    """File of one block; characters of `module:attribute` that do not belong in a file name become `_`."""
    return f"{re.sub(r'[^A-Za-z0-9-]', '_', encoder)}-{shard:06d}.npy"


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
    """Writes the blocks of this part's shards that are not there yet.

    Raises Interrupted between shards when `should_stop` says so.
    """
    mine = [i for i in part.of(len(dataset.shard_names)) if _missing(encoders, folder, i)]
    with Progress(title, sum(dataset.shard_counts[i] for i in mine), "img", show=show) as progress:
        on_progress(progress)
        for number in mine:
            if should_stop():
                raise Interrupted(f"encoding stopped before shard {number}; finished blocks are kept")
            samples, _ = dataset.shard(number)
            write_blocks(encoders, folder, number, samples)
            progress.advance(dataset.shard_counts[number])


def write_blocks(encoders: Mapping[str, Encoder], folder: Path, number: int, samples: Samples) -> None:
    """Writes the blocks of one shard that are not there yet."""
    for name in _missing(encoders, folder, number):
        block = io.BytesIO()
        np.save(block, encoders[name](samples), allow_pickle=False)
        content = block.getvalue()
        manifest.add(folder, block_name(name, number), lambda file, c=content: file.write(c))  # type: ignore[misc]


def _missing(encoders: Mapping[str, Encoder], folder: Path, shard: int) -> list[str]:
    return [name for name in encoders if not (folder / block_name(name, shard)).exists()]


def seal_features(
    dataset: Dataset, encoders: Mapping[str, Encoder], folder: Path, made_from: Mapping[str, str]
) -> manifest.Manifest:
    """Seals the blocks of all shards. Raises UserError naming the first one that is missing."""
    blocks = len(dataset.shard_names)
    names = [block_name(name, i) for name in encoders for i in range(blocks)]
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing feature block: encode this shard before sealing")
    about = {"encoders": {name: {"dim": e.dim, "digest": e.digest} for name, e in encoders.items()}, "blocks": blocks}
    return manifest.seal(folder, "features", len(dataset), names, about=about, made_from=made_from)


def load_features(folder: Path, encoder: str | None = None) -> NDArray[np.float32]:
    """The features of a sealed folder: float32 [N, D], memory-mapped where it is a single block.

    encoder  may be left out where the folder holds one encoder's features only
    Every block is checked against the manifest. Raises UserError when the folder is not sealed, holds no features, or
    not that encoder's, and, naming the block, when one is not what was sealed.
    """
    sealed = manifest.read(folder)
    if sealed.kind != "features":
        raise UserError(f"{folder}: holds {sealed.kind}, not features")
    encoders = list(sealed.about["encoders"])
    if encoder is None and len(encoders) == 1:
        encoder = encoders[0]
    if encoder is None or encoder not in encoders:
        raise UserError(f"{folder}: name one of its encoders: {', '.join(encoders)}")
    names = [block_name(encoder, i) for i in range(sealed.about["blocks"])]
    manifest.check(folder, names)
    blocks = [load_block(folder / name) for name in names]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def load_block(path: Path) -> NDArray[np.float32]:
    """One block, memory-mapped copy-on-write (torch warns about read-only arrays). Raises UserError when damaged."""
    try:
        block: NDArray[np.float32] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged feature block ({error})") from error
    return block


def encoder_digest(folder: Path, encoder: str) -> str:
    """Identifies the weights and preprocessing that made an encoder's features in a sealed folder."""
    return str(manifest.read(folder).about["encoders"][encoder]["digest"])
