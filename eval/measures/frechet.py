"""Frechet distance and the spectrum of a covariance, from streamed float64 moments.

    features  ->  moments  ->  merge (blocks, ranks)  ->  frechet_distance, spectrum, effective_rank

N points, D features.

With Inception-v3 pool3 features the Frechet distance is FID (Heusel et al. 2017), with DINOv2 features FD-DINOv2
(Stein et al. 2023); the formula is the same for any encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

_BLOCK = 8192  # rows widened to float64 at a time


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of points. `merge` gives the Moments of a union.

    rows  the centred points themselves, when all are available and N <= D. They replace `sums`, so that no D x D matrix
          is formed, which matters for raw pixels
    """

    n: int
    mean: Tensor  #                float64 [D]
    sums: Tensor | None = None  #  float64 [D, D]: the scatter, where there are no rows
    rows: Tensor | None = None  #  float64 [N, D]

    @property
    def scatter(self) -> Tensor:
        """Sum over points of (x - mean)(x - mean)^T: float64 [D, D]."""
        if self.rows is not None:
            return self.rows.T @ self.rows
        assert self.sums is not None
        return self.sums

    @property
    def variance(self) -> Tensor:
        """Trace of the covariance."""
        total = self.scatter.trace() if self.rows is None else self.rows.square().sum()
        return total / max(self.n - 1, 1)

    @property
    def covariance(self) -> Tensor:
        """Unbiased (divided by n - 1): float64 [D, D]; zeros for a single point."""
        return self.scatter / max(self.n - 1, 1)


def moments(features: Tensor) -> Moments:
    """Moments of [N, D] features (any real dtype), N >= 0, summed in float64 about their own mean."""
    n, d = features.shape
    zero = torch.zeros(d, dtype=torch.float64, device=features.device)
    mean = sum((block.double().sum(0) for block in torch.split(features, _BLOCK)), zero) / max(n, 1)
    if n <= d:
        rows = features.double() - mean
        return Moments(n, mean, rows=rows)
    scatter = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for block in torch.split(features, _BLOCK):
        centred = block.double() - mean
        scatter += centred.T @ centred
    return Moments(n, mean, scatter)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union (Chan, Golub and LeVeque 1979), without cancellation however far apart the means are."""
    n = a.n + b.n
    if n == 0:
        return a
    shift = b.mean - a.mean
    mean = a.mean + shift * (b.n / n)
    return Moments(n, mean, a.scatter + b.scatter + torch.outer(shift, shift) * (a.n * b.n / n))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), where S_a and S_b are unbiased covariances.

    For any factors S = F^T F, the eigenvalues of S_a S_b are the squared singular values of F_a F_b^T, so the last
    trace is the sum of those singular values. This takes no root of a non-symmetric product, and it is exact when N < D
    makes the covariances singular. In squared units of the features. Both sets need at least two points.
    """
    assert a.n >= 2
    assert b.n >= 2
    cross: Tensor = torch.linalg.svdvals(factor(a) @ factor(b).T).sum()
    distance = (a.mean - b.mean).square().sum() + a.variance + b.variance - 2 * cross
    return max(float(distance), 0.0)


def factor(of: Moments) -> Tensor:
    """F [R, D] such that F^T F is the covariance: the scaled rows if `of` has rows, else the Cholesky factor, else the
    eigenvectors whose eigenvalues exceed rounding level (a singular covariance has no stable Cholesky factor)."""
    if of.rows is not None:
        return of.rows / math.sqrt(max(of.n - 1, 1))
    lower, failed = torch.linalg.cholesky_ex(of.covariance)
    if not failed:
        upper: Tensor = lower.T
        return upper
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(of.covariance)
    kept = values > values.max().clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def spectrum(of: Moments) -> Tensor:
    """Eigenvalues of the covariance, largest first, with negative rounding noise set to zero: float64 [min(N, D)]."""
    values: Tensor
    if of.rows is not None:
        values = torch.linalg.svdvals(of.rows)
        return values.square() / max(of.n - 1, 1)
    values = torch.linalg.eigvalsh(of.covariance)
    return values.flip(0).clamp(min=0)


def principal_axes(of: Moments, k: int) -> Tensor:
    """The k leading eigenvectors of the covariance, as columns, up to their sign: float64 [D, min(k, N, D)].

    Columns of directions without variance are zero, because only rounding decides which of them a library returns.
    """
    if of.rows is not None:
        axes: Tensor
        _, values, axes = torch.linalg.svd(of.rows, full_matrices=False)
        kept = values > values.max() * max(of.rows.shape) * torch.finfo(torch.float64).eps
        axes = (axes * kept[:, None])[:k].T.contiguous()
        return axes
    d = len(of.mean)
    chosen = [max(d - k, 0), d - 1]
    values, vectors = scipy.linalg.eigh(of.covariance.cpu().numpy(), subset_by_index=chosen)
    vectors *= values > values[-1] * d * torch.finfo(torch.float64).eps
    return torch.from_numpy(vectors[:, ::-1].copy()).to(of.mean.device)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the Shannon entropy of the normalised eigenvalues (Roy and Vetterli 2007); 0 when all are zero."""
    total = eigenvalues.sum()
    if total <= 0:
        return 0.0
    shares = eigenvalues / total
    return math.exp(float(torch.special.entr(shares).sum()))
