"""Seeds, and who does which piece of work: pure functions of integers that do not depend on the world size.

Everything random in a run is a function of (run seed, generation, purpose, index). Sample `i` of generation `g`
therefore is the same image on one rank or on 64, and a resumed run draws what the uninterrupted one would have drawn.
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
    """A seed in [0, 2^63) that differs for any two different arguments (as far as BLAKE2b tells them apart)."""
    text = f"{run_seed}/{generation}/{purpose}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(run_seed: int, generation: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator with the seed of `derive_seed`; drawn on the CPU, numbers do not depend on the device."""
    import torch  # here, since most readers of this file need none

    return torch.Generator().manual_seed(derive_seed(run_seed, generation, purpose, index))


def permutation(seed: int, n: int) -> NDArray[np.int64]:
    """A uniform random order of range(n): int64 [n], the same for a seed on every machine (Philox)."""
    return np.random.Generator(np.random.Philox(seed)).permutation(n).astype(np.int64)


def bounds(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Cuts [start, stop) into pieces of `step`, the last one shorter where it does not divide."""
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]


@dataclass(frozen=True)
class Part:
    """The share `index::count` of numbered pieces of work: index, index + count, index + 2 count, …"""

    index: int = 0
    count: int = 1

    def of(self, pieces: int) -> range:
        return range(self.index, pieces, self.count)

    def split(self, rank: int, size: int) -> Part:
        """What rank `rank` of `size` takes of this part."""
        return Part(self.index + self.count * rank, self.count * size)

    def __str__(self) -> str:
        return f"{self.index}::{self.count}"


def parse_part(text: str) -> Part:
    """Reads `i::n`. Raises UserError unless 0 <= i < n."""
    match = re.fullmatch(r"(\d+)::(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--part {text}: give i::n with 0 <= i < n, for example 0::4 for the first of four parts")
    return Part(int(match[1]), int(match[2]))
