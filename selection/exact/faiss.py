"""Candidates from faiss, and the check that the true neighbours are among them.

Shapes: n queries, m bank rows, D features, k neighbours, c candidates.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from entroloop.selection.exact import topk
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.formats import F32
from entroloop.selection.exact.sketch import Frame, Sketch

_MORE = 8  # candidates beyond k in the first try
_MOST = 256


@cache
def has_faiss(device: str = "cpu") -> bool:
    """Whether faiss is installed and can search on this type of device."""
    if importlib.util.find_spec("faiss") is None:
        return False
    if device != "cuda":
        return True
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def faiss_candidates(
    mine: Tensor, block: Tensor, first: int, lists: tuple[Tensor, Tensor], ignore: Tensor | None, frame: Frame
) -> Tensor:
    """Merges one bank block [m, D] into the lists of the queries [n, D], in place.

    Merges only for queries whose nearest rows of the block are certainly among faiss's candidates.
    -> the other queries, int64; their lists are unchanged
    """
    import faiss

    k, m, d = lists[0].shape[1], len(block), block.shape[1]
    left, right = Sketch.of(mine, frame, F32), Sketch.of(block, frame, F32)
    # [-2 z, ...] -> z. The error bounds of a sketch also hold for faiss's own products of z, with twice the steps.
    queries, bank = left.left[:, :d] * -0.5, right.left[:, :d] * -0.5
    index: Any = faiss.IndexFlatL2(d)
    if mine.device.type == "cuda":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), mine.device.index or 0, index)
    index.add(bank.contiguous().cpu().numpy())
    device = mine.device
    open_ = torch.arange(len(mine), device=device)
    more = _MORE
    while len(open_) and more <= _MOST:
        c = min(k + more, m)
        found_by_faiss = index.search(queries[open_].contiguous().cpu().numpy(), c)
        square, found = (torch.from_numpy(x).to(device) for x in found_by_faiss)
        row = torch.arange(len(open_), device=device).repeat_interleave(c)
        column = found.flatten()
        if ignore is not None:
            counts = column != ignore[open_][row]
            row, column = row[counts], column[counts]
        distance = pair_distances(mine, open_[row], block, column)
        rows, offered = topk.from_pairs(row, distance, column + first, k)
        where = open_[rows]
        merged = topk.merge((lists[0][where], lists[1][where]), offered, k)
        bounds, worst = left.certificate[where], right.certificate.worst()
        # every row that faiss did not return has a product of at least the largest returned product
        margin = 2 * bounds.error(worst)
        certain = (square[rows, -1].double() > bounds.cut(worst, merged[0][:, -1], frame.scale).double() + margin) | (
            c == m
        )
        lists[0][where[certain]], lists[1][where[certain]] = merged[0][certain], merged[1][certain]
        unsure = torch.ones(len(open_), dtype=torch.bool, device=device)
        unsure[rows[certain]] = False
        open_ = open_[unsure]
        if c == m:
            break
        more *= 4
    return open_
