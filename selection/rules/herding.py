"""Herding: rows whose distribution matches that of a reference, by kernel mean matching.

    Problem with a reference  ->  herding  ->  Selection

Kernel herding (Chen, Welling and Smola 2010, arXiv 1203.3472) picks, one after the other, the row that brings the mean
embedding of the chosen rows closest to the reference's, under a Gaussian kernel. The embedding consists of cosines and
sines at 256 random frequencies (Rahimi and Recht 2007), so a pick costs the same however many rows have been chosen.
The bandwidth is half the median distance of reference pairs; scaling the features scales it.

Candidates are visited in blocks of the seeded order, and each block gives its share of the picks. Inside a block each
pick is the best of a window of 64 candidates, and the window moves round through the candidates that are left. Memory
is that of one block, and every candidate is embedded once, on its own rank.

Cosines and sines are rounded to 1/127 and the target to a fixed fraction, so embeddings, sums and scores are exact
integers in float64. The ids do not depend on ranks, threads or the order in which a library adds. Ties go to the first
candidate of the window.

Shapes: N candidates, D features, F frequencies, B rows of a block, M chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.spaces import exact_product
from entroloop.selection.rules.problem import Problem, Selection

FREQUENCIES = 256
WINDOW = 64
BLOCK = 8192
_LEVELS = 127  # cosines are multiples of 1 / 127, which int8 holds
_SAMPLE = 1024  # reference rows whose pairs give the median distance
_PAIRS = 1 << 16
_ROWS = 1024  # rows embedded at a time


def herding(problem: Problem) -> Selection:
    """The rows whose kernel mean embedding is that of the reference; `info["mmd"]` is the distance that remains.

    Raises UserError without a reference of at least 2 rows.
    """
    own, reference = problem.candidates, problem.reference
    if reference is None or reference.total < 2:
        raise UserError("reference: herding needs at least 2 rows of real data")
    embed = _embedding(problem)
    sums = torch.zeros(2 * FREQUENCIES, dtype=torch.int64, device=own.rows.device)
    for rows in torch.split(reference.rows, BLOCK):
        sums += embed(rows).sum(0, dtype=torch.int64)
    sums = own.world.all_reduce(sums)
    # 7 bits of a feature, 8 of a residual per pick, 9 of a sum over 2 F features: scores stay below 2^53
    unit = 2.0 ** max(0, 29 - problem.size.bit_length())
    target = torch.round(sums.double() * unit / reference.total).cpu().numpy()
    residual, order, chosen = np.zeros(2 * FREQUENCIES), problem.order(), 0
    taken = []
    for start in range(0, own.total, BLOCK):
        ids = order[start : start + BLOCK]
        count = problem.size * (start + len(ids)) // own.total - chosen
        features = own.take(ids.to(own.rows.device), embed).double().cpu().numpy()
        taken.append(ids[torch.from_numpy(_herded(features, residual, target, unit, count))])
        chosen += count
        problem.on_progress(count)
    mmd = float(np.sqrt(((residual / unit / problem.size / _LEVELS) ** 2).sum() / FREQUENCIES))
    return problem.selection(torch.cat(taken), mmd=mmd)


def _embedding(problem: Problem) -> Callable[[Tensor], Tensor]:
    """The map of rows to the cosines and sines of their random projections, in units of 1 / 127.

    [n, D] -> int8 [n, 2 F]; each row depends on the same row alone
    """
    reference = problem.reference
    assert reference is not None
    draw = problem.generator("herding")
    picked = torch.from_numpy(draw.permutation(reference.total)[:_SAMPLE])
    sample = reference.take(picked.to(reference.rows.device))
    i = draw.integers(len(sample), size=_PAIRS)
    j = (i + draw.integers(1, len(sample), size=_PAIRS)) % len(sample)
    pairs = (torch.from_numpy(x).to(sample.device) for x in (i, j))
    distances = pair_distances(sample, next(pairs), sample, next(pairs)).cpu().numpy()
    bandwidth = (float(np.median(distances)) or float(distances.max()) or 1.0) / 2
    normal = torch.from_numpy(draw.normal(size=(sample.shape[1], FREQUENCIES))).to(sample.device)
    centre = sample[0].double()  # near the rows, so that projections keep their digits

    def embed(rows: Tensor) -> Tensor:
        out = torch.empty((len(rows), 2 * FREQUENCIES), dtype=torch.int8, device=rows.device)
        for start in range(0, len(rows), _ROWS):
            angle = exact_product((rows[start : start + _ROWS].double() - centre) / bandwidth, normal)
            waves = torch.cat([angle.cos(), angle.sin()], dim=1)
            out[start : start + len(angle)] = torch.round(_LEVELS * waves).to(torch.int8)
        return out

    return embed


def _herded(
    features: NDArray[np.float64],
    residual: NDArray[np.float64],
    target: NDArray[np.float64],
    unit: float,
    count: int,
) -> NDArray[np.int64]:
    """Picks `count` rows of a block. Returns their places in the block, in the order picked.

    features  integers [B, 2 F], changed
    residual  the number of rows picked so far times the target, minus `unit` times their sum: [2 F], changed
    target    `unit` times the mean of the reference's features, as integers [2 F]
    """
    waiting = np.arange(len(features))  # waiting[:left] and features[:left] are not picked yet
    left, turn = len(features), 0
    picked = np.empty(count, dtype=np.int64)
    for j in range(count):
        residual += target
        turn = max(0, min(turn, left - WINDOW)) if turn < left else 0
        best = turn + int((features[turn : min(turn + WINDOW, left)] @ residual).argmax())
        picked[j] = waiting[best]
        residual -= unit * features[best]
        left -= 1
        waiting[best], features[best] = waiting[left], features[left]
        turn += WINDOW
    return picked
