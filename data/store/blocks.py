"""Sealed feature folders, read back: one `.npy` block per shard and encoder.

    a sealed folder  ->  encoders_of  ->  names  ->  load_blocks (mapped)  or  load_features (one array)

N samples, D features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError, reading
from entroloop.data.store import manifest


def block_name(encoder: str, shard: int) -> str:
    """File name of one block. Characters of `module:attribute` that do not belong in a file name become `_`."""
    return f"{re.sub(r'[^A-Za-z0-9-]', '_', encoder)}-{shard:06d}.npy"


def missing(encoders: Iterable[str], folder: Path, shard: int) -> list[str]:
    """The encoders whose block of a shard is not in the folder yet."""
    return [name for name in encoders if not (folder / block_name(name, shard)).exists()]


def encoders_of(folder: Path) -> list[str]:
    """Names of the encoders whose features a sealed folder holds. Raises UserError when it holds no features."""
    sealed = manifest.read(folder)
    if sealed.kind != "features":
        raise UserError(f"{folder}: holds {sealed.kind}, not features")
    return list(sealed.about["encoders"])


def load_blocks(folder: Path, encoder: str) -> list[NDArray[np.float32]]:
    """The blocks of one encoder, memory-mapped: float32 [n, D] each. Concatenated rows are in the order of the samples.

    Checks every block against the manifest. Raises UserError when the folder is not sealed or holds no features of this
    encoder, and, naming the block, when a block differs from the sealed one.
    """
    known = encoders_of(folder)
    if encoder not in known:
        raise UserError(f"{folder}: holds no features by {encoder}, only by {', '.join(known)}")
    names = [block_name(encoder, i) for i in range(manifest.read(folder).about["blocks"])]
    manifest.check(folder, names)
    blocks = []
    for name in names:
        with reading(str(folder / name), "damaged feature block"):  # copy-on-write: torch warns about read-only arrays
            blocks.append(np.load(folder / name, mmap_mode="c", allow_pickle=False))
    return blocks


def load_features(folder: str | Path, encoder: str) -> NDArray[np.float32]:
    """The features of all samples: float32 [N, D], memory-mapped if there is a single block. See `load_blocks`."""
    blocks = load_blocks(Path(folder), encoder)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def encoder_digest(folder: Path, encoder: str) -> str:
    """Identifies the weights and preprocessing that made an encoder's features in a sealed folder."""
    return str(manifest.read(folder).about["encoders"][encoder]["digest"])
