"""Every measure of one encoder's features, at any number of ranks.

    generated, training, reference (this rank's rows of each)  ->  Measured(values, context), the same on every rank

Points are compared block by block: other ranks' rows pass by in a ring, and only vectors with one number a point are
gathered. The arithmetic itself is in frechet, manifold, diversity and memorization.

M generated points, N training points, R reference points (held-out real data), D features, K neighbours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.eval import diversity, frechet, manifold, memorization
from entroloop.selection import kl_entropy, nearest

Features = NDArray[Any] | Tensor

K_MANIFOLD = 3  # precision and recall
K_DENSITY = 5  #  density and coverage
PCA, CELLS = 64, 3  # C_T
TOP_EIGENVALUES = 32


@dataclass(frozen=True)
class Measured:
    """`values`: one float a measure, nan where it is undefined. `context`: what is needed to read them (JSON-able)."""

    values: dict[str, float]
    context: dict[str, Any] = field(default_factory=dict)


def measure(
    generated: Features,
    training: Features,
    reference: Features | None = None,
    *,
    world: World | None = None,
    entropy_size: int | None = None,
    seed: int = 0,
) -> Measured:
    """All of the measures (docs/measures.md lists them).

    generated, training, reference  [M, D], [N, D], [R, D]; with a `world`, this rank's rows of each
    entropy_size                    training points, drawn with `seed`, for the entropy estimate; None: all of them

    Frechet and kernel distance, precision, recall, density and coverage compare with `reference` where given, else with
    `training`; what needs both (score ratio, calibrated memorization, C_T) is left out without a reference.
    Raises UserError when shapes do not fit, a set has fewer than two points or a value is not finite.
    """
    sets = _Sets(generated, training, reference, world or World())
    values: dict[str, float] = {}
    context: dict[str, Any] = {
        "n_generated": sets.n["generated"],
        "n_training": sets.n["training"],
        "n_reference": sets.n.get("reference", 0),
        "dimensions": sets.generated.shape[1],
        "seed": seed,
    }
    for part in (_distribution(sets), _neighbourhoods(sets), _entropy(sets, entropy_size, seed), _ct(sets, seed)):
        values |= part.values
        context |= part.context
    return Measured(values, context)


class _Sets:
    """The three sets on one device, their sizes over all ranks, and the exchanges that the measures share."""

    def __init__(self, generated: Features, training: Features, reference: Features | None, world: World) -> None:
        self.world = world
        self.generated = self._load("generated", generated)
        self.training = self._load("training", training)
        self.reference = None if reference is None else self._load("reference", reference)
        self.real = self.training if self.reference is None else self.reference
        named = {"generated": self.generated, "training": self.training}
        if self.reference is not None:
            named["reference"] = self.reference
        self.n = {name: sum(world.gather_counts(len(x))) for name, x in named.items()}
        for name, x in named.items():
            if x.shape[1] != self.generated.shape[1]:
                raise UserError(
                    f"{name}: has {x.shape[1]} features a point, but generated has {self.generated.shape[1]}; "
                    "use the same encoder and image size for both"
                )
            if self.n[name] < 2:
                raise UserError(f"{name}: holds {self.n[name]} point(s); measures need at least 2")
        self.n_real = self.n.get("reference", self.n["training"])

    def _load(self, name: str, features: Features) -> Tensor:
        x = torch.as_tensor(features)
        if x.ndim != 2:
            raise UserError(f"{name}: features have shape {tuple(x.shape)}; expected [points, features]")
        if x.dtype == torch.bool or x.is_complex():
            raise UserError(f"{name}: features of type {x.dtype}; expected float32")
        x = x.to(device=self.world.device, dtype=torch.float32)
        if not bool(torch.isfinite(x).all()):
            raise UserError(f"{name}: features hold values that are not finite (inf or nan)")
        return x

    def nearest(self, queries: Tensor, bank: Tensor, k: int, *, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
        """Distances float64 [all queries, k] and global ids, on every rank."""
        distances, ids = nearest(queries, bank, k, exclude_self=exclude_self, world=self.world)
        return self.gather(torch.as_tensor(distances)), self.gather(torch.as_tensor(ids))

    def gather(self, x: Tensor) -> Tensor:
        return self.world.gather_rows(x.to(self.world.device))

    def ring(self, x: Tensor) -> Iterator[Tensor]:
        """Every rank's rows of `x`, one rank at a time, this rank's first."""
        rows = self.world.gather_counts(len(x))
        yield x
        for step in range(1, self.world.size):
            x = self.world.rotate(x, rows[(self.world.rank - step) % self.world.size])
            yield x

    def total(self, *values: float) -> list[float]:
        """Sums over ranks."""
        out = self.world.all_reduce(torch.tensor(values, dtype=torch.float64, device=self.world.device))
        return [float(value) for value in out]

    def moments(self, x: Tensor) -> frechet.Moments:
        own = frechet.moments(x)
        if self.world.size == 1:
            return own
        counts = self.world.gather_counts(own.n)
        n = sum(counts)
        mean = self.world.all_reduce(own.mean * own.n) / n
        shift = own.mean - mean
        scatter = self.world.all_reduce(own.scatter + own.n * torch.outer(shift, shift))
        return frechet.Moments(n, mean, scatter)


def _distribution(sets: _Sets) -> Measured:
    """Measures of the whole distributions: FD, KID, Vendi, spectrum."""
    ours, theirs = sets.moments(sets.generated), sets.moments(sets.real)
    eigenvalues = frechet.spectrum(ours)
    values = {
        "frechet_distance": frechet.frechet_distance(ours, theirs),
        "kernel_distance": _kernel_distance(sets),
        "vendi_score": _vendi_score(sets),
        "covariance_trace": float(eigenvalues.sum()),
        "effective_rank": frechet.effective_rank(eigenvalues),
    }
    top = [float(value) for value in eigenvalues[: min(TOP_EIGENVALUES, ours.n - 1)]]
    return Measured(values, {"top_eigenvalues": top})


def _vendi_score(sets: _Sets) -> float:
    x, n = sets.generated, sets.n["generated"]
    if sets.world.size == 1 and n < x.shape[1]:
        rows = diversity.unit_rows(x)
        return diversity.vendi_score(rows @ rows.T, n)
    return diversity.vendi_score(sets.world.all_reduce(diversity.cosine_gram(x)), n)


def _kernel_distance(sets: _Sets) -> float:
    x, y = sets.generated, sets.real
    xx = math.fsum(diversity.polynomial_kernel_sum(x, other) for other in sets.ring(x))
    yy = math.fsum(diversity.polynomial_kernel_sum(y, other) for other in sets.ring(y))
    xy = math.fsum(diversity.polynomial_kernel_sum(x, other) for other in sets.ring(y))
    diagonals = diversity.polynomial_kernel_diagonal(x), diversity.polynomial_kernel_diagonal(y)
    xx, yy, xy = sets.total(xx - diagonals[0], yy - diagonals[1], xy)
    return diversity.kernel_distance(xx, yy, xy, sets.n["generated"], sets.n_real)


def _neighbourhoods(sets: _Sets) -> Measured:
    """Measures of nearest-neighbour distances: scores, memorization, precision, recall, density, coverage."""
    m, n = sets.n["generated"], sets.n["training"]
    to_training, training_ids = sets.nearest(sets.generated, sets.training, min(2, n))
    k_real, k_ours = min(K_DENSITY, sets.n_real - 1), min(K_MANIFOLD, m - 1)
    k_precision = min(K_MANIFOLD, k_real)
    within_real, _ = sets.nearest(sets.real, sets.real, k_real, exclude_self=True)
    within_ours, _ = sets.nearest(sets.generated, sets.generated, k_ours, exclude_self=True)
    if sets.reference is None:
        within_training = within_real[:, 0]
    else:
        within_training = sets.nearest(sets.training, sets.training, 1, exclude_self=True)[0][:, 0]
    to_ours, _ = sets.nearest(sets.real, sets.generated, 1)

    precision_radii, density_radii = within_real[:, k_precision - 1], within_real[:, k_real - 1]
    score = float(to_training[:, 0].mean())
    values = {
        "generalization_score": score,
        "memorized_fraction": memorization.memorized_fraction(to_training),
        "authenticity": memorization.authenticity(to_training[:, 0], training_ids[:, 0], within_training),
        "precision": manifold.share_inside(_balls(sets, sets.generated, sets.real, precision_radii, closed=True)),
        "recall": manifold.share_inside(_balls(sets, sets.real, sets.generated, within_ours[:, -1], closed=True)),
        "density": manifold.density(_balls(sets, sets.generated, sets.real, density_radii, closed=False), k_real),
        "coverage": manifold.coverage(to_ours[:, 0], density_radii),
    }
    context: dict[str, Any] = {"k": {"precision": k_precision, "recall": k_ours, "density": k_real, "coverage": k_real}}
    if sets.reference is not None:
        heldout = sets.nearest(sets.reference, sets.training, 1)[0][:, 0]
        limit = memorization.calibrated_distance(heldout)
        real_score = float(heldout.mean())
        values["generalization_score_ratio"] = score / real_score if real_score > 0 else math.nan
        values["memorized_calibrated"] = memorization.share_within(to_training[:, 0], limit)
        context |= {"reference_generalization_score": real_score, "memorized_calibrated_distance": limit}
    return Measured(values, context)


def _balls(sets: _Sets, points: Tensor, centres: Tensor, radii: Tensor, *, closed: bool) -> Tensor:
    """Balls around each of all ranks' points; `points` and `centres` are this rank's, `radii` those of all centres."""
    rows = sets.world.gather_counts(len(centres))
    start = sum(rows[: sets.world.rank])
    own = radii[start : start + len(centres)]
    counts = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for their_centres, their_radii in zip(sets.ring(centres), sets.ring(own), strict=True):
        counts += manifold.balls_around(points, their_centres, their_radii, closed=closed)
    return sets.gather(counts)


def _entropy(sets: _Sets, size: int | None, seed: int) -> Measured:
    """Kozachenko-Leonenko entropy of the training set, on a seeded subset of `size` points."""
    n = sets.n["training"]
    training = sets.training
    if size is not None and size < n:
        rows = sets.world.gather_counts(len(training))
        start = sum(rows[: sets.world.rank])
        chosen = np.sort(np.random.default_rng(seed).permutation(n)[:size])
        mine = chosen[(chosen >= start) & (chosen < start + len(training))] - start
        training = training[torch.from_numpy(mine).to(training.device)]
    entropy = kl_entropy(training, 1, world=sets.world)
    return Measured(
        {"training_entropy": float(entropy.nats)},
        {"entropy_n": int(entropy.n), "entropy_k": int(entropy.k), "entropy_floored": int(entropy.floored)},
    )


def _ct(sets: _Sets, seed: int) -> Measured:
    """C_T: principal components and cells of the training set, then nearest neighbours inside each cell."""
    if sets.reference is None or sets.n["training"] < CELLS:
        return Measured({})
    moments = sets.moments(sets.training)
    vectors = sets.world.broadcast(frechet.principal_axes(moments, PCA))  # signs may differ between machines
    training, generated, reference = (
        ((x.double() - moments.mean) @ vectors).float() for x in (sets.training, sets.generated, sets.reference)
    )
    everywhere = sets.gather(training)
    centres = sets.world.broadcast(_cell_centres(everywhere, seed))
    cells = _cells(everywhere, centres)
    ours, our_cell = _to_own_cell(generated, everywhere, cells, centres)
    theirs, their_cell = _to_own_cell(reference, everywhere, cells, centres)
    vectors_of_all = (sets.gather(x).cpu().numpy() for x in (ours, our_cell, theirs, their_cell))
    return Measured(
        {"ct_score": memorization.ct_score(*vectors_of_all)}, {"ct_cells": CELLS, "ct_pca": vectors.shape[1]}
    )


def _cell_centres(points: Tensor, seed: int) -> Tensor:
    from sklearn.cluster import KMeans  # takes a second to import
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a collapsed set may hold fewer distinct points than cells
        fitted = KMeans(n_clusters=CELLS, n_init=10, random_state=seed).fit(points.double().cpu().numpy())
    return torch.from_numpy(fitted.cluster_centers_).to(points.device)


def _cells(points: Tensor, centres: Tensor) -> Tensor:
    """int64 [n], the nearest centre of each point."""
    return torch.cdist(points.double(), centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def _to_own_cell(queries: Tensor, bank: Tensor, bank_cell: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each query to the nearest bank point of its own cell (float64 [n]), and that cell (int64 [n])."""
    cell = _cells(queries, centres)
    distance = torch.full((len(queries),), math.inf, dtype=torch.float64, device=queries.device)
    for c in range(len(centres)):
        mine, theirs = cell == c, bank_cell == c
        if mine.any() and theirs.any():
            distance[mine] = torch.as_tensor(nearest(queries[mine], bank[theirs], 1)[0])[:, 0].to(queries.device)
    return distance, cell
