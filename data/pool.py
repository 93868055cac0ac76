"""Which images a generation may train on: paradigm -> sources, as a pure function of integers.

Generation 0 trains on N real images. A later one may keep all that the generation before it trained on, and chooses `choose` images from `pool`, the candidates:

    replace               N of the c N samples of generation g - 1
    accumulate            N of the c N samples of generation g - 1, and everything generation g - 1 trained on;
                          with c = 1 that is the real data and every sample of every generation before g
    accumulate-subsample  N of the pool of the N real images and the samples of every generation before g

N images of generation 0, c candidates factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from entroloop.data.shards import REAL

Paradigm = Literal["replace", "accumulate", "accumulate-subsample"]


class LoopConfig(BaseModel):
    """How generations feed each other.

    paradigm    `replace`, `accumulate` or `accumulate-subsample`
    candidates  c: each generation samples c N images, so that there is something to choose from
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    paradigm: Paradigm = "replace"
    candidates: int = Field(2, ge=1)


@dataclass(frozen=True)
class Pool:
    """What a generation g >= 1 trains on.

    pool    generations whose samples are candidates (REAL: the real training images), in the order of candidate ids
    choose  how many of the candidates are chosen
    keep    whether all that generation g - 1 trained on is kept beside them
    """

    pool: tuple[int, ...]
    choose: int
    keep: bool


def pool_of(config: LoopConfig, generation: int, size: int) -> Pool:
    """The pool of generation >= 1, where `size` is N."""
    assert generation >= 1
    if config.paradigm == "accumulate-subsample":
        return Pool((REAL, *range(generation)), size, keep=False)
    return Pool((generation - 1,), size, keep=config.paradigm == "accumulate")


def training_size(config: LoopConfig, generation: int, size: int) -> int:
    """Images that generation trains on; grows under `accumulate` only."""
    return size * (generation + 1) if config.paradigm == "accumulate" else size
