"""The sets that measures compare, spread over ranks: sizes, neighbours and moments, each computed once and shared.

    generated, training, reference (this rank's rows of each)  ->  Sets  ->  per-point vectors and moments of all ranks

Points are compared block by block (`exchanges.py`). Every rank gets the same results and must ask for the same results
in the same order.

M generated points, N training points, R reference points (held-out real data), D features, K neighbours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.wording import counted
from entroloop.data.world import World
from entroloop.eval.measures import diversity, frechet
from entroloop.eval.measures.exchanges import Exchanges
from entroloop.selection import Entropy, kl_entropy
from entroloop.selection.entropy import entropy_of
from entroloop.selection.exact.distance import first_bad_row

Features = NDArray[Any] | Tensor
T = TypeVar("T")

K_MANIFOLD = 3  # precision and recall
K_DENSITY = 5  #  density and coverage
OF_REAL = (
    "within_real", "within_training", "reference_to_training", "reference_to_copies", "real_moments", "real_kernel_sum",
    "entropy",
)  # fmt: skip  # found once, from the real sets alone
LARGEST_SEED = 2**32 - 1  # the largest that both numpy and scikit-learn accept


class _FoundOnce(Generic[T]):
    """functools.cached_property without its lock. Python 3.11 shares that lock between all instances, so ranks that are
    threads of one process would wait for each other."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        self._find = find

    def __get__(self, sets: Any, owner: type) -> T:
        name = self._find.__name__
        if name not in sets.__dict__:
            sets.__dict__[name] = self._find(sets)
        found: T = sets.__dict__[name]
        return found


class Sets(Exchanges):
    """Two or three sets on one device. `real` is the reference if there is one, else the training set.

    generated, training, reference  [M, D], [N, D], [R, D]; with a `world`, this rank's rows of each
    entropy_size                    training points, drawn with `seed`, for the entropy estimate; None: all of them
    mirrored                        [N, D], the training set with every image flipped, in the same order; given when the
                                    model was trained with flips: a mirrored copy then counts as a copy

    Raises UserError for a seed below 0 or above 2**32 - 1. Raises UserError naming the set when its shape does not fit,
    it has fewer than two points or one of its values is not finite in float32.
    """

    def __init__(
        self,
        generated: Features,
        training: Features,
        reference: Features | None = None,
        mirrored: Features | None = None,
        *,
        world: World | None = None,
        entropy_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"seed {seed}: must be from 0 to {LARGEST_SEED}")
        super().__init__(World() if world is None else world)
        self.entropy_size, self.seed = entropy_size, seed
        given = {"generated": generated, "training": training, "reference": reference, "mirrored": mirrored}
        loaded = {name: self._load(name, x) for name, x in given.items() if x is not None}
        self.n = {name: sum(self.world.gather_counts(len(x))) for name, x in loaded.items()}
        self.generated, self.training, self.reference = loaded["generated"], loaded["training"], loaded.get("reference")
        self.mirrored = loaded.get("mirrored")
        self.dimensions = self.generated.shape[1]
        for name, x in loaded.items():
            self._check(name, x)
        self.real = self.training if self.reference is None else self.reference
        self.n_real = self.n.get("reference", self.n["training"])
        self._within_first: dict[int, Tensor] = {}

    def against(self, generated: Features) -> Sets:
        """The same real sets beside other generated points. What is known of the real sets alone is not found again."""
        kept = {name: value for name, value in self.__dict__.items() if name in OF_REAL}
        other = Sets(
            generated, self.training, self.reference, self.mirrored,
            world=self.world, entropy_size=self.entropy_size, seed=self.seed,
        )  # fmt: skip
        other.__dict__.update(kept)
        return other

    def _load(self, name: str, features: Features) -> Tensor:
        x = rows_of(name, features).to(
            device=self.world.device, dtype=torch.float32
        )  # on the CPU, what is mapped stays mapped
        check_finite(name, x)
        return x

    def _check(self, name: str, x: Tensor) -> None:
        check_width(name, x.shape[1], self.dimensions)
        if name == "mirrored" and self.n[name] != self.n["training"]:
            raise UserError(f"mirrored: holds {self.n[name]} points, the training set {self.n['training']}")
        if self.n[name] < 2:
            raise UserError(f"{name}: holds {counted(self.n[name], 'point')}; measures need at least 2")

    @_FoundOnce
    def to_training(self) -> tuple[Tensor, Tensor]:
        """Each generated point's two nearest training points: distances [M, 2], ids [M, 2]."""
        return self.nearest(self.generated, self.training, 2)

    @_FoundOnce
    def to_copies(self) -> Tensor:
        """Each generated point's distances to the two nearest training points, mirrored or not: [M, 2]."""
        distances, ids = self.to_training
        if self.mirrored is None:
            return distances
        other, other_ids = self.nearest(self.generated, self.mirrored, 2)
        return _two_smallest(torch.cat([distances, other], 1), torch.cat([ids, other_ids], 1))

    @_FoundOnce
    def reference_to_copies(self) -> Tensor:
        """Each reference point's distance to the nearest training point, mirrored or not: [R]."""
        if self.mirrored is None:
            return self.reference_to_training
        assert self.reference is not None
        other = self.nearest(self.reference, self.mirrored, 1)[0][:, 0]
        return torch.minimum(self.reference_to_training, other)

    @_FoundOnce
    def within_real(self) -> Tensor:
        """Each real point's K_DENSITY (or all) nearest other real points: distances [R, K]."""
        return self.nearest(self.real, self.real, min(K_DENSITY, self.n_real - 1), exclude_self=True)[0]

    @_FoundOnce
    def within_training(self) -> Tensor:
        """Each training point's distance to the nearest other training point: [N]."""
        if self.reference is None:
            return self.within_real[:, 0]
        return self.nearest(self.training, self.training, 1, exclude_self=True)[0][:, 0]

    @_FoundOnce
    def within_generated(self) -> Tensor:
        """Each generated point's K_MANIFOLD (or all) nearest other generated points: distances [M, K]."""
        k = min(K_MANIFOLD, self.n["generated"] - 1)
        return self.nearest(self.generated, self.generated, k, exclude_self=True)[0]

    @_FoundOnce
    def within_equal_n(self) -> tuple[Tensor, Tensor]:
        """Of the first n generated and the first n real points, n the smaller of the two numbers, each point's distance
        to the nearest other of the n: [n], [n]."""
        n = min(self.n["generated"], self.n_real)
        if n == self.n_real:
            return self.within_first_generated(n), self.within_real[:, 0]
        mine = self.first(self.real, n)
        return self.within_first_generated(n), self.nearest(mine, mine, 1, exclude_self=True)[0][:, 0]

    def within_first_generated(self, n: int) -> Tensor:
        """Each of the first n generated points' distance to the nearest other of them: [n]."""
        if n == self.n["generated"]:
            return self.within_generated[:, 0]
        if n not in self._within_first:
            mine = self.first(self.generated, n)
            self._within_first[n] = self.nearest(mine, mine, 1, exclude_self=True)[0][:, 0]
        return self._within_first[n]

    @_FoundOnce
    def in_real_balls(self) -> list[tuple[Tensor, Tensor]]:
        """Generated points and balls of real points: the closed K_MANIFOLD balls, then the open K_DENSITY balls. For
        each kind the number of balls around each generated point [M], and of generated points in each ball [R]."""
        closed = self.within_real[:, min(K_MANIFOLD, self.within_real.shape[1]) - 1]
        return self.balls(self.generated, self.real, [(closed, True), (self.within_real[:, -1], False)])

    @_FoundOnce
    def reference_to_training(self) -> Tensor:
        """Each reference point's distance to the nearest training point: [R]."""
        assert self.reference is not None
        return self.nearest(self.reference, self.training, 1)[0][:, 0]

    @_FoundOnce
    def generated_moments(self) -> frechet.Moments:
        return self._moments(self.generated, self.n["generated"])

    @_FoundOnce
    def real_moments(self) -> frechet.Moments:
        return self._moments(self.real, self.n_real)

    def _moments(self, x: Tensor, n: int) -> frechet.Moments:
        """Moments of all ranks' n points. If n <= D, every rank gathers all points: they need no more memory than their
        scatter, and rounding in a singular scatter would show in the measures."""
        if n <= self.dimensions:
            return frechet.moments(self.gather(x))
        return self.combined(frechet.moments(x))

    @_FoundOnce
    def real_kernel_sum(self) -> float:
        """Sum of KID's kernel over ordered pairs of different real points."""
        return self.total(self.kernel_sum(self.real, self.real) - diversity.polynomial_kernel_diagonal(self.real))[0]

    @_FoundOnce
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of the generated points' covariance, largest first."""
        return frechet.spectrum(self.generated_moments)

    @_FoundOnce
    def entropy(self) -> Entropy:
        """Kozachenko-Leonenko estimate of the training set, on a seeded subset of `entropy_size` points."""
        if self.entropy_size is None or self.entropy_size >= self.n["training"]:
            return self._entropy(self.own(self.within_training, self.training))
        return kl_entropy(self.drawn_training(self.entropy_size), 1, world=self.world)

    @_FoundOnce
    def generated_entropy(self) -> Entropy | None:
        """The same estimate of as many generated points, the first ones; None if there are fewer."""
        n = self.entropy.n
        if self.n["generated"] < n:
            return None
        return self._entropy(self.own(self.within_first_generated(n), self.first(self.generated, n)))

    def _entropy(self, radii: Tensor) -> Entropy:
        return entropy_of(radii.cpu().numpy(), self.dimensions, 1, world=self.world)

    def drawn_training(self, size: int) -> Tensor:
        """This rank's rows of a seeded subset of at most `size` training points, the same at any number of ranks."""
        n, training = self.n["training"], self.training
        if size >= n:
            return training
        return self.among(training, np.sort(np.random.default_rng(self.seed).permutation(n)[:size]))


def rows_of(name: str, features: Any) -> Tensor:
    """The features as a Tensor, not copied. Raises UserError, naming the set, unless they are [n, D] real numbers."""
    if len(np.shape(features)) != 2:
        raise UserError(f"{name}: features have shape {tuple(np.shape(features))}; expected [points, features]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only maps; nothing here writes to them
        x = torch.as_tensor(features)
    if x.dtype == torch.bool or x.is_complex():
        raise UserError(f"{name}: features of type {x.dtype}; expected float32")
    return x


def check_finite(name: str, features: Tensor) -> None:
    """Raises UserError, naming the set, when a value is inf, nan or beyond the range of float32."""
    if first_bad_row(features, torch.finfo(torch.float32).max):
        raise UserError(f"{name}: features hold values that are not finite in float32 (inf, nan, or beyond ±3.4e38)")


def check_width(name: str, width: int, generated: int) -> None:
    """Raises UserError, naming the set, unless it has as many features per point as the generated set."""
    if width != generated:
        raise UserError(
            f"{name}: has {width} features per point, but generated has {generated}; "
            "use the same encoder and image size for both"
        )


def _two_smallest(distances: Tensor, ids: Tensor) -> Tensor:
    """The smallest distances to two different ids: [M, 4] and [M, 4] -> [M, 2]."""
    distances, order = distances.sort(1)
    ids = ids.gather(1, order)
    second = torch.where(ids[:, 1:] == ids[:, :1], torch.inf, distances[:, 1:]).min(1).values
    return torch.stack([distances[:, 0], second], 1)
