"""Kernel measures of a set and between sets: Vendi score and KID.

    features  ->  cosine_gram (summed over blocks and ranks)  ->  vendi_score
    features, features  ->  polynomial_kernel_sum (likewise)  ->  kernel_distance

M and N points, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK = 4096


def cosine_gram(features: Tensor) -> Tensor:
    """sum_i u_i u_i^T over the rows scaled to length 1: float64 [D, D]."""
    d = features.shape[1]
    gram = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for block in torch.split(features, _BLOCK):
        rows = unit_rows(block)
        gram += rows.T @ rows
    return gram


def unit_rows(features: Tensor) -> Tensor:
    """Rows scaled to length 1, in float64; rows of zeros stay zero."""
    rows = features.double()
    length = rows.norm(dim=1, keepdim=True)
    return torch.where(length > 0, rows / length, 0.0)


def vendi_score(gram: Tensor, n: int) -> float:
    """exp(-sum lambda log lambda) over the eigenvalues of the n x n cosine kernel divided by n (Friedman and Dieng
    2023). `gram` is that kernel or the D x D matrix of `cosine_gram`: their non-zero eigenvalues are the same. The
    score is between 1 and min(n, D)."""
    values = torch.linalg.eigvalsh(gram / n).clamp(min=0)
    return math.exp(float(torch.special.entr(values).sum()))


def polynomial_kernel_sum(x: Tensor, y: Tensor) -> float:
    """sum_ij (x_i . y_j / D + 1)^3 in float64, computed in blocks; x [M, D], y [N, D]."""
    d = x.shape[1]
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for a in torch.split(x, _BLOCK):
        rows = a.double() / d
        for b in torch.split(y, _BLOCK):
            total += (rows @ b.double().T).add_(1).pow_(3).sum()
    return float(total)


def polynomial_kernel_diagonal(x: Tensor) -> float:
    """sum_i (x_i . x_i / D + 1)^3 in float64; x [M, D]."""
    d = x.shape[1]
    blocks = (float((block.double().square().sum(1) / d + 1).pow(3).sum()) for block in torch.split(x, _BLOCK))
    return math.fsum(blocks)


def kernel_distance(sum_xx: float, sum_yy: float, sum_xy: float, m: int, n: int) -> float:
    """KID: the unbiased estimate of MMD^2 with kernel (x . y / D + 1)^3 (Binkowski et al. 2018), over all points.

    sum_xx, sum_yy  kernel sums over ordered pairs of *different* points of one set
    sum_xy          kernel sum over all pairs of the two sets

    The often reported average over random subsets estimates the same number with more noise. The estimate may be below
    zero.
    """
    return sum_xx / (m * (m - 1)) + sum_yy / (n * (n - 1)) - 2 * sum_xy / (m * n)
