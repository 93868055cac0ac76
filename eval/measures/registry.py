"""Every measure, by name, as a function of the sets it compares.

    Sets (this rank's rows of each)  ->  Measured(values, context), the same on every rank

The arithmetic is in frechet, manifold, diversity and memorization; `Sets` finds neighbours and talks to other ranks.

M generated points, N training points, R reference points, D features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.eval.catalogue import MEASURES
from entroloop.eval.measures import diversity, frechet, manifold, memorization
from entroloop.eval.measures.sets import K_MANIFOLD, Sets
from entroloop.selection import nearest
from entroloop.selection.entropy import FLOOR
from entroloop.selection.exact.spaces import exact_product

PCA, CELLS = 64, 3  # C_T
CT_ROWS = 8192  # at most this many training points are used to fit the components of C_T
TOP_EIGENVALUES = 32


@dataclass(frozen=True)
class Measured:
    """`values`: one float per measure, nan where undefined. `context`: the facts needed to read them, as JSON types."""

    values: dict[str, float]
    context: dict[str, Any]


def measure(sets: Sets, *, only: Iterable[str] | None = None, more: Iterable[str] = ()) -> Measured:
    """All built-in measures and the user's own measures named in `more`; with `only`, just the measures named in it.

    Frechet and kernel distance, spread gap, precision, recall, density and coverage compare with the reference set if
    there is one, else with the training set. Without a reference, measures that need all three sets are left out.
    Searches switch off TF32 and reduced-precision sums, for the other threads of the process too (see `nearest`).
    Raises UserError when a measure of the user's own returns anything but a number.
    """
    wanted = [*MEASURES.built_in, *more] if only is None else list(only)
    values = {
        name: _number(name, MEASURES.load(name)(sets))
        for name in wanted
        if sets.reference is not None or not MEASURES.facts(name).needs_reference
    }
    return Measured(values, _context(sets) if only is None else {})


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"measure {name}: must return one number, returned {type(value).__name__}")
    return float(value)


def _context(sets: Sets) -> dict[str, Any]:
    k_real = sets.within_real.shape[1]
    context = {
        "n_generated": sets.n["generated"],
        "n_training": sets.n["training"],
        "n_reference": sets.n.get("reference", 0),
        "dimensions": sets.dimensions,
        "seed": sets.seed,
        "mirrored_copies_count": sets.mirrored is not None,
        "k": {
            "precision": min(K_MANIFOLD, k_real),
            "recall": sets.within_generated.shape[1],
            "density": k_real,
            "coverage": k_real,
        },
        "entropy_n": int(sets.entropy.n),
        "entropy_k": int(sets.entropy.k),
        "entropy_floored": int(sets.entropy.floored),
        "top_eigenvalues": [float(v) for v in sets.eigenvalues[: min(TOP_EIGENVALUES, sets.n["generated"] - 1)]],
    }
    if sets.generated_entropy is not None:
        context["generated_entropy_floored"] = int(sets.generated_entropy.floored)
    if sets.reference is not None:
        context["reference_generalization_score"] = float(sets.reference_to_training.mean())
        context["memorized_calibrated_distance"] = memorization.calibrated_distance(sets.reference_to_copies)
        context["ct"] = {"components": min(PCA, sets.dimensions, sets.n["training"]), "cells": CELLS}
    return context


def frechet_distance(sets: Sets) -> float:
    return frechet.frechet_distance(sets.generated_moments, sets.real_moments)


def covariance_trace(sets: Sets) -> float:
    return float(sets.eigenvalues.sum())


def effective_rank(sets: Sets) -> float:
    return frechet.effective_rank(sets.eigenvalues)


def vendi_score(sets: Sets) -> float:
    x, n = sets.generated, sets.n["generated"]
    if n < sets.dimensions:  # then the n x n matrix is the smaller one; the test is the same at any number of ranks
        rows = diversity.unit_rows(sets.gather(x))
        return diversity.vendi_score(rows @ rows.T, n)
    return diversity.vendi_score(sets.world.all_reduce(diversity.cosine_gram(x)), n)


def kernel_distance(sets: Sets) -> float:
    x = sets.generated
    xx, xy = sets.total(sets.kernel_sum(x, x) - diversity.polynomial_kernel_diagonal(x), sets.kernel_sum(x, sets.real))
    return diversity.kernel_distance(xx, sets.real_kernel_sum, xy, sets.n["generated"], sets.n_real)


def precision(sets: Sets) -> float:
    return manifold.share_inside(sets.in_real_balls[0][0])


def recall(sets: Sets) -> float:
    [(around, _)] = sets.balls(sets.real, sets.generated, [(sets.within_generated[:, -1], True)])
    return manifold.share_inside(around)


def density(sets: Sets) -> float:
    return manifold.density(sets.in_real_balls[1][0], sets.within_real.shape[1])


def coverage(sets: Sets) -> float:
    return manifold.share_inside(sets.in_real_balls[1][1])


def generalization_score(sets: Sets) -> float:
    return float(sets.to_training[0][:, 0].mean())


def generalization_score_ratio(sets: Sets) -> float:
    real = float(sets.reference_to_training.mean())
    return generalization_score(sets) / real if real > 0 else math.nan


def memorized_fraction(sets: Sets) -> float:
    return memorization.memorized_fraction(sets.to_copies)


def memorized_calibrated(sets: Sets) -> float:
    limit = memorization.calibrated_distance(sets.reference_to_copies)
    return memorization.share_within(sets.to_copies[:, 0], limit)


def authenticity(sets: Sets) -> float:
    distances, ids = sets.to_training
    return memorization.authenticity(distances[:, 0], ids[:, 0], sets.within_training)


def training_entropy(sets: Sets) -> float:
    return float(sets.entropy.nats)


def generated_entropy(sets: Sets) -> float:
    return math.nan if sets.generated_entropy is None else float(sets.generated_entropy.nats)


def spread_gap(sets: Sets) -> float:
    generated, real = (near.clamp(min=FLOOR).log().mean() for near in sets.within_equal_n)
    return float(generated - real)


def ct_score(sets: Sets) -> float:
    """C_T on principal components and cells of the training set, with nearest neighbours inside each cell.

    All ranks use one rank's components, fitted to at most CT_ROWS training points drawn with the seed. Rows are
    projected exactly, so cells and the order of distances do not depend on how rows are spread over processes.
    """
    assert sets.reference is not None
    if sets.n["training"] < CELLS:
        return math.nan
    of = frechet.moments(sets.gather(sets.drawn_training(CT_ROWS)))
    axes, mean = sets.world.broadcast(frechet.principal_axes(of, PCA)), sets.world.broadcast(of.mean)

    def project(x: Tensor) -> Tensor:
        return torch.cat([exact_product(rows.double() - mean, axes).float() for rows in torch.split(x, CT_ROWS)])

    everywhere = sets.gather(project(sets.training))
    centres = sets.world.broadcast(_cell_centres(everywhere, sets.seed))
    cells = _cells(everywhere, centres)
    ours = _to_own_cell(project(sets.generated), everywhere, cells, centres)
    theirs = _to_own_cell(project(sets.reference), everywhere, cells, centres)
    return memorization.ct_score(*(sets.gather(x).cpu().numpy() for x in (*ours, *theirs)))


def _cell_centres(points: Tensor, seed: int) -> Tensor:
    from sklearn.cluster import KMeans  # takes a second to import
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a collapsed set may hold fewer distinct points than cells
        fitted = KMeans(n_clusters=CELLS, n_init=10, random_state=seed, copy_x=False).fit(points.double().cpu().numpy())
    return torch.from_numpy(fitted.cluster_centers_).to(points.device)


def _cells(points: Tensor, centres: Tensor) -> Tensor:
    """int64 [n], the nearest centre of each point."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat(
        [torch.cdist(x.double(), centres, compute_mode=exact).argmin(1) for x in torch.split(points, CT_ROWS)]
    )


def _to_own_cell(queries: Tensor, bank: Tensor, bank_cell: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each query to the nearest bank point in the query's cell (float64 [n]), and that cell (int64 [n])."""
    cell = _cells(queries, centres)
    distance = torch.full((len(queries),), math.inf, dtype=torch.float64, device=queries.device)
    for c in range(len(centres)):
        mine, theirs = cell == c, bank_cell == c
        if mine.any() and theirs.any():
            distance[mine] = torch.as_tensor(nearest(queries[mine], bank[theirs], 1)[0])[:, 0].to(queries.device)
    return distance, cell
