"""Candidates from faiss, with the check that they hold the true neighbours.

Shapes: n queries, m bank rows, D features, k neighbours, c candidates.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from entroloop.selection import topk
from entroloop.selection.distance import pair_distances
from entroloop.selection.sketch import F32, Frame, Sketch

_MORE = 8  # candidates beyond k in the first try
_MOST = 256


@cache
def has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def faiss_candidates(
    mine: Tensor, block: Tensor, first: int, lists: tuple[Tensor, Tensor], ignore: Tensor | None, frame: Frame
) -> Tensor:
    """Merges one bank block [m, D] into the lists of the queries [n, D], in place, where that is certain.

    -> the queries for which it is not, int64
    """
    import faiss

    k, m, d = lists[0].shape[1], len(block), block.shape[1]
    left, right = Sketch.of(mine, frame, F32), Sketch.of(block, frame, F32)
    # [-2 z, ...] -> z; the margins of a sketch hold for faiss's own products of z as well, with twice the steps
    queries, bank = left.left[:, :d] * -0.5, right.left[:, :d] * -0.5
    index = faiss.IndexFlatL2(d)
    index.add(bank.contiguous().numpy())
    open_ = torch.arange(len(mine))
    more = _MORE
    while len(open_) and more <= _MOST:
        c = min(k + more, m)
        square, found = (torch.from_numpy(x) for x in index.search(queries[open_].contiguous().numpy(), c))
        row = torch.arange(len(open_)).repeat_interleave(c)
        column = found.flatten()
        if ignore is not None:
            counts = column != ignore[open_][row]
            row, column = row[counts], column[counts]
        distance = pair_distances(mine, open_[row], block, column)
        rows, offered = topk.from_pairs(row, distance, column + first, k)
        where = open_[rows]
        merged = topk.merge((lists[0][where], lists[1][where]), offered, k)
        bounds, worst = left.certificate[where], right.certificate.worst()
        # every row not found has a product of at least the largest one found
        margin = 2 * bounds.error(worst)
        certain = (square[rows, -1].double() > bounds.cut(worst, merged[0][:, -1], frame.scale).double() + margin) | (
            c == m
        )
        lists[0][where[certain]], lists[1][where[certain]] = merged[0][certain], merged[1][certain]
        unsure = torch.ones(len(open_), dtype=torch.bool)
        unsure[rows[certain]] = False
        open_ = open_[unsure]
        if c == m:
            break
        more *= 4
    return open_
