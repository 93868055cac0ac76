"""The images that a generation trains on: paradigm -> sources, as pure functions of integers.

Generation 0 trains on N real images. A later generation may keep all images that the generation before it trained on.
It adds `fresh` real images that were never used before, and `choose` images chosen from `pool`, the candidates. Without
fresh images:

    replace               N of the c N samples of generation g - 1
    accumulate            N of the c N samples of generation g - 1, and everything generation g - 1 trained on;
                          with c = 1 these are the real data and every sample of every generation before g
    accumulate-subsample  N of the pool of the N real images and the samples of every generation before g

With a share alpha of fresh images, round(alpha N) of the N are fresh and the others are chosen as above. Fresh images
of earlier generations are never candidates again: accumulate keeps them, the other paradigms drop them.

With `keep_real`, a share of the N are real images of generation 0, and the strategy chooses the others from generated
candidates alone. With a share of 1 every generation trains on the real N again, under any paradigm that has it.

With `all_candidates` nothing is chosen: a generation takes all candidates and round(alpha N) fresh images.

N images of generation 0, c candidate sets of N samples per generation, alpha share of fresh real images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from entroloop.data.config import Section
from entroloop.data.errors import UserError
from entroloop.data.store.shards import REAL

Paradigm = Literal["replace", "accumulate", "accumulate-subsample"]


class FreshConfig(Section):
    """Real samples never used before, in every training set but the first."""

    share: float = Field(0.0, ge=0, le=1)
    """alpha: the share of the N training samples of generation 1 that are fresh."""
    schedule: Literal["constant", "linear", "decaying"] = "constant"
    """The share in later generations: `constant`; `linear` falls to 0 over `over` generations; `decaying` is multiplied
    by `decay` per generation."""
    over: int = Field(10, ge=1)
    """Number of generations after which the linear schedule reaches 0."""
    decay: float = Field(0.5, gt=0, lt=1)
    """Factor of the decaying schedule, per generation."""

    def count(self, generation: int, size: int) -> int:
        """Number of fresh images of generation >= 1; `size` is N."""
        return round(self.at(generation) * size)

    def at(self, generation: int) -> float:
        """alpha of generation >= 1."""
        match self.schedule:
            case "constant":
                return self.share
            case "linear":
                return self.share * max(0.0, 1 - (generation - 1) / self.over)
            case "decaying":
                return self.share * self.decay ** (generation - 1)


class LoopConfig(Section):
    """How generations feed each other."""

    paradigm: Paradigm = "replace"
    """The pool from which a training set is chosen: `replace` (the samples of the previous generation), `accumulate`
    (the same pool, and the set keeps all earlier training samples) or `accumulate-subsample` (N of all samples and the
    real training samples)."""
    candidates: int = Field(2, ge=1)
    """c: each generation samples c N candidates. The default is 1 under `accumulate-subsample`: its pool is larger
    than N anyway, and more candidates lower the share of real samples."""
    fresh: FreshConfig = FreshConfig()
    """Real samples never used before."""
    keep_real: float = Field(0.0, ge=0, le=1)
    """Share of the N training samples that are real training samples of generation 0. These are then not candidates. 1
    (or `true`) is the control `real-only`: every generation trains on the real N again, also under `replace`."""
    draw: Literal["uniform", "stratified"] = "uniform"
    """How the strategy `random` draws: `uniform`, or `stratified`, as equal a number as possible from each source."""
    balanced: bool = False
    """Choose as equal a number as possible from each class, by the strategy within each class."""
    all_candidates: bool = False
    """Train on all candidates instead of choosing: a control for every selection. `train.kimg` fixes the number of
    images seen in both cases."""

    @model_validator(mode="before")
    @classmethod
    def _no_more_candidates_than_needed(cls, values: Any) -> Any:
        """Sets the default of `candidates` that fits the paradigm."""
        if isinstance(values, dict) and values.get("paradigm") == "accumulate-subsample":
            return {"candidates": 1, **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _all_or_nothing(cls, values: Any) -> Any:
        """Reads `keep_real: true` as 1."""
        if isinstance(values, dict) and isinstance(values.get("keep_real"), bool):
            return {**values, "keep_real": float(values["keep_real"])}
        return values

    @model_validator(mode="after")
    def _real_are_kept_where_they_can_be(self) -> LoopConfig:
        if self.keep_real and self.paradigm == "accumulate":
            raise ValueError(f"keep_real={self.keep_real:g}: paradigm accumulate keeps all real samples anyway")
        if self.keep_real and self.all_candidates:
            raise ValueError(f"keep_real={self.keep_real:g}: leave it out with all_candidates, which chooses nothing")
        return self


@dataclass(frozen=True)
class Pool:
    """The training images of a generation g >= 1.

    pool    generations whose samples are candidates (REAL: the real training images), in the order of candidate ids
    choose  number of candidates chosen
    keep    whether all images that generation g - 1 trained on are kept, too
    fresh   positions start … stop - 1 of the real images that are taken from `RealSplit.fresh`
    real    number of real training images that are kept before the choice
    """

    pool: tuple[int, ...]
    choose: int
    keep: bool
    fresh: range = range(0)
    real: int = 0


def pool_of(config: LoopConfig, generation: int, size: int) -> Pool:
    """The pool of a generation >= 1; `size` is N."""
    assert generation >= 1
    count = config.fresh.count(generation, size)
    before = sum(config.fresh.count(g, size) for g in range(1, generation)) if config.fresh.share else 0
    subsample = config.paradigm == "accumulate-subsample"
    pool = tuple(range(generation)) if subsample else (generation - 1,)
    if subsample and not config.keep_real:
        pool = (REAL, *pool)
    choose, _ = choice(config, generation, size)
    return Pool(
        pool if choose else (),
        choose,
        keep=config.paradigm == "accumulate",
        fresh=range(before, before + count),
        real=_kept_real(config, generation, size),
    )


def _kept_real(config: LoopConfig, generation: int, size: int) -> int:
    """Number of real images that are kept first in a generation >= 1; `size` is N."""
    return min(round(config.keep_real * size), size - config.fresh.count(generation, size))


def choice(config: LoopConfig, generation: int, size: int) -> tuple[int, int]:
    """(number of candidates chosen, number of candidates) of a generation >= 1, as `pool_of`; `size` is N.

    Takes the same time for every generation.
    """
    one = config.candidates * size
    total = one
    if config.paradigm == "accumulate-subsample":
        total = generation * one + (0 if config.keep_real else size)
    if config.all_candidates:
        return total, total
    return size - config.fresh.count(generation, size) - _kept_real(config, generation, size), total


def settled(config: LoopConfig, size: int) -> int:
    """The generation from which on every generation takes the same number of fresh images; `size` is N.

    From there on the choices become no harder: their number stays, and pools never shrink.
    """
    fresh = config.fresh
    if not fresh.share or fresh.schedule == "constant":
        return 1
    if fresh.schedule == "linear":
        return fresh.over + 1
    half_an_image = math.log(0.5) - math.log(fresh.share) - math.log(size)
    return 2 + max(0, math.ceil(half_an_image / math.log(fresh.decay)))


def origins(config: LoopConfig, generation: int, size: int) -> frozenset[int]:
    """The generations (REAL: the real data) whose images a generation's training set may hold; `size` is N."""
    if generation == 0:
        return frozenset({REAL})
    pool = pool_of(config, generation, size)
    kept = origins(config, generation - 1, size) if pool.keep else frozenset()
    return kept | {*pool.pool, *([REAL] if pool.fresh or pool.real else [])}


def pool_size(config: LoopConfig, pool: Iterable[int], size: int) -> int:
    """Number of candidates from these generations: c N per generation, N for REAL; `size` is N."""
    return sum(size if generation == REAL else config.candidates * size for generation in pool)


def training_size(config: LoopConfig, generation: int, size: int) -> int:
    """Number of images a generation trains on; `size` is N. Grows under `accumulate` and with `all_candidates`.

    Takes as long as the schedule of fresh images takes to settle.
    """

    def added(g: int) -> int:
        return choice(config, g, size)[0] + config.fresh.count(g, size) + _kept_real(config, g, size)

    if generation == 0:
        return size
    if config.paradigm != "accumulate":
        return added(generation)
    last = min(generation, settled(config, size))
    return size + sum(map(added, range(1, last))) + (generation - last + 1) * added(last)


def check_fresh(config: LoopConfig, generations: int, size: int, available: int) -> None:
    """Raises UserError when a run of `generations` needs more fresh real images than the `available` ones."""
    needed, last = 0, settled(config, size)
    for generation in range(1, generations):
        count = config.fresh.count(generation, size)
        if not count and generation >= last:
            break
        needed += count
        if needed > available:
            raise UserError(
                f"loop.fresh.share={config.fresh.share:g}: the {available} real images beside training, held-out and "
                f"labelled ones run out at generation {generation}, which needs {needed} in all: lower the share, "
                "generations or data.size"
            )
