"""The spread of a set of points: the Kozachenko-Leonenko entropy, and the generalization score.

Shapes: n points, m bank rows, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import digamma, gammaln

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.selection.catalogue import DISTANCES
from entroloop.selection.neighbours import nearest

FLOOR = 1e-10  # smaller distances are raised to this; the public code of the paper adds this number instead


@dataclass(frozen=True)
class Entropy:
    """A Kozachenko-Leonenko estimate.

    nats      the estimate of the differential entropy; compare it at equal `n` only
    n, d, k   number of points, number of features, k of the k-th neighbour
    floored   number of points whose k-th neighbour is nearer than `floor`, for example exact duplicates
    terms     [n_r] float64, one term per point of this rank; the mean over the points of all ranks is `nats`
    """

    nats: float
    n: int
    d: int
    k: int
    floored: int
    floor: float = FLOOR
    terms: NDArray[np.float64] | None = None


def kl_entropy(
    features: Any,
    k: int = 1,
    *,
    metric: str = "euclidean",
    world: World | None = None,
    floor: float = FLOOR,
    per_sample: bool = False,
) -> Entropy:
    """H = psi(n) - psi(k) + log c_d + (d/n) sum_i log r_i in nats (Kozachenko & Leonenko 1987, as in arXiv 2509.16499).

    features    [n_r, D] this rank's points
    metric      under cosine r_i is the distance of rows scaled to length 1; d is still the number of features
    k           r_i is the distance from point i to its k-th nearest *other* point
    floor       smaller distances are raised to it, because duplicates would give minus infinity
    per_sample  also return each point's term, psi(n) - psi(k) + log c_d + d log r_i
    Raises UserError for n <= k and for unusable features. Precision is set as in `nearest`.
    """
    if not (math.isfinite(floor) and floor > 0):
        raise UserError(f"floor: must be a positive number, is {floor}")
    world = World() if world is None else world
    d = int(np.shape(features)[1]) if len(np.shape(features)) == 2 else 0
    distances, _ = nearest(features, features, k, exclude_self=True, metric=metric, world=world)
    radius = np.sqrt(2 * distances[:, -1]) if DISTANCES.facts(metric).angular else distances[:, -1]
    return entropy_of(radius, d, k, world=world, floor=floor, per_sample=per_sample)


def entropy_of(
    radius: NDArray[np.float64],
    d: int,
    k: int,
    *,
    world: World,
    floor: float = FLOOR,
    per_sample: bool = False,
) -> Entropy:
    """`kl_entropy` from the distances of this rank's points to their k-th nearest other point, float64 [n_r]."""
    logs = np.log(np.maximum(radius, floor))
    sums = torch.tensor([logs.sum(), len(radius), (radius < floor).sum()], dtype=torch.float64)
    total, count, floored = world.gather_rows(sums[None]).sum(0).tolist()
    n = int(count)
    constant = float(digamma(n) - digamma(k)) + d / 2 * math.log(math.pi) - float(gammaln(d / 2 + 1))
    return Entropy(
        nats=constant + d * total / n,
        n=n,
        d=d,
        k=k,
        floored=int(floored),
        floor=floor,
        terms=constant + d * logs if per_sample else None,
    )


def generalization_score(
    generated: Any, training: Any, *, metric: str = "euclidean", world: World | None = None
) -> float:
    """GS = mean over generated x of min over training z of |x - z| (arXiv 2509.16499); falling means memorization.

    Precision is set as in `nearest`, also for other threads. Raises UserError for unusable
    features or no generated rows.
    """
    world = World() if world is None else world
    distances, _ = nearest(generated, training, metric=metric, world=world)
    sums = torch.tensor([[distances.sum(), len(distances)]], dtype=torch.float64)
    total, n = world.gather_rows(sums).sum(0).tolist()
    if n == 0:
        raise UserError("generated: holds no rows")
    return float(total / n)
