"""Frechet distance and the spectrum of a covariance, from streamed float64 moments.

    features  ->  moments  ->  merge (blocks, ranks)  ->  frechet_distance, covariance_trace, effective_rank

N points, D features.

With Inception-v3 pool3 features the Frechet distance is FID (Heusel et al. 2017), with DINOv2 features FD-DINOv2
(Stein et al. 2023); the formula is the same for any encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 8192  # rows widened to float64 at a time


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of points; sets are united with `merge`."""

    n: int
    mean: Tensor  #    float64 [D]
    scatter: Tensor  # float64 [D, D]: sum over points of (x - mean)(x - mean)^T

    @property
    def covariance(self) -> Tensor:
        """Unbiased (divided by n - 1): float64 [D, D]; zeros for a single point."""
        return self.scatter / max(self.n - 1, 1)


def moments(features: Tensor) -> Moments:
    """Moments of [N, D] features (any real dtype), N >= 0, summed in float64 about their own mean."""
    n, d = features.shape
    zero = torch.zeros(d, dtype=torch.float64, device=features.device)
    mean = sum((block.double().sum(0) for block in torch.split(features, _BLOCK)), zero) / max(n, 1)
    scatter = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for block in torch.split(features, _BLOCK):
        centred = block.double() - mean
        scatter += centred.T @ centred
    return Moments(n, mean, scatter)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union (Chan, Golub and LeVeque 1979): no cancellation, however far the means lie apart."""
    n = a.n + b.n
    if n == 0:
        return a
    shift = b.mean - a.mean
    return Moments(
        n,
        a.mean + shift * (b.n / n),
        a.scatter + b.scatter + torch.outer(shift, shift) * (a.n * b.n / n),
    )


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), the S being unbiased covariances.

    The last trace is the sum of the singular values of S_a^(1/2) S_b^(1/2), both roots taken by symmetric
    eigenvalues and cut at rounding level: no root of a non-symmetric product, and exact when N < D leaves the
    covariances singular. Squared units of the features. Needs two points on either side.
    """
    assert a.n >= 2
    assert b.n >= 2
    cross = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance).T).sum()
    traces: Tensor = a.covariance.trace() + b.covariance.trace()
    distance = (a.mean - b.mean).square().sum() + traces - 2 * cross
    return max(float(distance), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """[R, D] with R the numerical rank: rows sqrt(lambda_i) v_i^T."""
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.max().clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def spectrum(covariance: Tensor) -> Tensor:
    """Eigenvalues of a covariance, largest first, rounding noise below zero set to zero: float64 [D]."""
    values: Tensor = torch.linalg.eigvalsh(covariance)
    return values.flip(0).clamp(min=0)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the Shannon entropy of the normalised eigenvalues (Roy and Vetterli 2007); 0 when all are zero."""
    total = eigenvalues.sum()
    if total <= 0:
        return 0.0
    shares = eigenvalues / total
    return math.exp(float(torch.special.entr(shares).sum()))
