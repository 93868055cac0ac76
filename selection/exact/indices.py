"""Candidates from an index of other libraries, and the check that the true neighbours are among them.

    bank block -> FaissIndex or TreeIndex -> merge_candidates -> lists of the queries, and the queries left over

faiss multiplies in float32; scipy's k-d tree is faster by far in few dimensions. The canonical distance decides the
order of the candidates, so every index gives the same neighbours.

Shapes: n queries, m bank rows, D features, k neighbours, c candidates.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from entroloop.selection.exact import topk
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.formats import F32
from entroloop.selection.exact.intervals import cut
from entroloop.selection.exact.sketch import Frame, Sketch

TREE_FEATURES = 8  # most features for which a k-d tree is faster than products
_MOST = 256  # candidates of the last try
_TREE_ROUNDING = 1e-12  # relative error of the tree's float64 distances, with a wide margin
_TREE_UNDERFLOW = 1e-160  # absolute error of distances whose squares underflow

Search = Callable[[Tensor, int], tuple[Tensor, Callable[[Tensor], Tensor]]]


class Index(Protocol):
    """A bank block [m, D], ready to be searched. `more` is the number of candidates beyond k in the first try."""

    more: int

    def of(self, queries: Tensor) -> Search:
        """(numbers of queries [q], c) -> candidates int64 [q, c], and a test.

        The test takes a float64 distance per query. It is true where every row that is no candidate is certainly
        further away.
        """
        ...


@cache
def has_faiss(device: str = "cpu") -> bool:
    """Whether faiss is installed and can search on this type of device."""
    if importlib.util.find_spec("faiss") is None:
        return False
    if device != "cuda":
        return True
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@cache
def _gpu_resources(device: int) -> Any:
    import faiss

    return faiss.StandardGpuResources()


class FaissIndex:
    """faiss's exhaustive search. Its float32 distances have the error bounds of float32 sketches."""

    more = 8

    def __init__(self, block: Tensor, frame: Frame) -> None:
        import faiss

        self.frame = frame
        sketch = Sketch.of(block, frame, F32)
        self.worst = sketch.errors.amax(0)
        self.index: Any = faiss.IndexFlatL2(block.shape[1])
        if block.device.type == "cuda":
            device = block.device.index or 0
            self.index = faiss.index_cpu_to_gpu(_gpu_resources(device), device, self.index)
        self.index.add(self._centred(sketch.factor, block.shape[1]))

    @staticmethod
    def _centred(left: Tensor, d: int) -> Any:
        # [-2 z, ...] -> z. The bounds of a sketch also hold for faiss's own products of z, with twice the steps.
        return (left[:, :d] * -0.5).contiguous().cpu().numpy()

    def of(self, queries: Tensor) -> Search:
        left = Sketch.of(queries, self.frame, F32)

        def search(numbers: Tensor, c: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            errors = left.errors[numbers] + self.worst
            square, found = self.index.search(self._centred(left.factor[numbers], queries.shape[1]), c)
            last = torch.from_numpy(square[:, -1].copy()).to(queries.device).double()

            def beyond(distance: Tensor) -> Tensor:
                return last > cut(F32, errors, distance, self.frame.scale).double() + 2 * errors[:, 0]

            return torch.from_numpy(found).to(queries.device), beyond

        return search


class TreeIndex:
    """scipy's k-d tree, on a CPU, for few features. Its distances are rounded differently than the canonical ones."""

    more = 2

    def __init__(self, block: Tensor) -> None:
        from scipy.spatial import cKDTree

        self.tree: Any = cKDTree(block.double().numpy())

    def of(self, queries: Tensor) -> Search:
        wide = queries.double().numpy()

        def search(numbers: Tensor, c: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            distance, found = self.tree.query(wide[numbers.numpy()], k=range(1, c + 1), workers=torch.get_num_threads())
            last = torch.from_numpy(distance[:, -1].copy())
            return torch.from_numpy(found), lambda far: last > far * (1 + _TREE_ROUNDING) + _TREE_UNDERFLOW

        return search


def merge_candidates(
    index: Index, queries: Tensor, block: Tensor, first: int, lists: tuple[Tensor, Tensor], ignore: Tensor | None
) -> Tensor:
    """Merges one bank block [m, D] into the lists of the queries [n, D], in place.

    Merges only for queries whose nearest rows of the block are certainly among the index's candidates.
    -> the other queries, int64; their lists are unchanged
    """
    k, m, search = lists[0].shape[1], len(block), index.of(queries)
    unsure = torch.arange(len(queries), device=queries.device)
    more = index.more
    while len(unsure) and more <= _MOST:
        c = min(k + more, m)
        found, beyond = search(unsure, c)
        distance = pair_distances(queries, unsure.repeat_interleave(c), block, found.flatten()).view(-1, c)
        if ignore is not None:
            distance[found == ignore[unsure][:, None]] = torch.inf
        merged = topk.merge((lists[0][unsure], lists[1][unsure]), (distance, found + first), k)
        certain = beyond(merged[0][:, -1]) if c < m else torch.ones_like(unsure, dtype=torch.bool)
        lists[0][unsure[certain]], lists[1][unsure[certain]] = merged[0][certain], merged[1][certain]
        unsure = unsure[~certain]
        if c == m:
            break
        more *= 4
    return unsure
