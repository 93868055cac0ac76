"""Seeds, and the assignment of pieces of work: pure functions of integers, independent of the world size.

Everything random in a run is a function of (run seed, generation, purpose, index). Sample `i` of generation `g` is
therefore the same image on 1 rank and on 64, and a resumed run draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError

if TYPE_CHECKING:
    import torch


def derive_seed(run_seed: int, generation: int, purpose: str, index: int = 0) -> int:
    """A seed in [0, 2^63). Different arguments give different seeds, except for collisions of BLAKE2b."""
    text = f"{run_seed}/{generation}/{purpose}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(run_seed: int, generation: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator with the seed of `derive_seed`. Numbers drawn on the CPU do not depend on the device."""
    import torch  # here, because most importers of this file do not need torch

    return torch.Generator().manual_seed(derive_seed(run_seed, generation, purpose, index))


def permutation(seed: int, n: int) -> NDArray[np.int64]:
    """A uniform random order of range(n): int64 [n], the same for a seed on every machine (Philox)."""
    return np.random.Generator(np.random.Philox(seed)).permutation(n).astype(np.int64)


def bounds(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Cuts [start, stop) into pieces of length `step`. The last piece may be shorter."""
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]


@dataclass(frozen=True)
class Part:
    """The share `index::count` of numbered pieces of work: index, index + count, index + 2 count, …"""

    index: int = 0
    count: int = 1

    def of(self, pieces: int) -> range:
        return range(self.index, pieces, self.count)

    def split(self, rank: int, size: int) -> Part:
        """The share of this part that rank `rank` of `size` does."""
        return Part(self.index + self.count * rank, self.count * size)

    def __str__(self) -> str:
        return f"{self.index}::{self.count}"


def parse_part(text: str) -> Part:
    """Reads `i::n`. Raises UserError unless 0 <= i < n."""
    match = re.fullmatch(r"(\d+)::(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--part {text}: give i::n with 0 <= i < n, for example 0::4 for the first of four parts")
    return Part(int(match[1]), int(match[2]))
