"""Exact nearest neighbours, computed by blocks of queries and blocks of a bank.

    queries + bank (arrays, memory maps, tensors) -> nearest -> distances float64 [n, k], ids int64 [n, k]

Shapes: n queries, m bank rows, D features, k neighbours, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.memory import enough_memory
from entroloop.data.precision import full_precision
from entroloop.data.registry import unknown
from entroloop.data.world import World
from entroloop.selection.exact.canary import prove
from entroloop.selection.exact.distance import as_rows, bad_row_error, first_bad_row
from entroloop.selection.exact.formats import shortest_format
from entroloop.selection.exact.indices import TREE_FEATURES, FaissIndex, Index, TreeIndex, has_faiss
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.exact.search import Parts
from entroloop.selection.exact.sketch import Frame
from entroloop.selection.exact.spaces import check_mapped, check_rows, fit_metric

Backend = Literal["auto", "torch", "faiss"]


@full_precision()
@enough_memory("spread the rows over more processes")
def nearest(
    queries: Any,
    bank: Any,
    k: int = 1,
    *,
    exclude_self: bool = False,
    metric: str = "euclidean",
    world: World | None = None,
    backend: Backend = "auto",
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The k nearest bank rows of each query, exact; ties go to the smaller id.

    queries, bank  [n, D] and [m, D] float32, float64, float16 or uint8, values within ±1e150: arrays, tensors or
                   memory maps, which are read in blocks sized by the free memory. With a `world` each rank passes its
                   own rows; ids count bank rows in rank order.
    exclude_self   query i is bank row i and does not count as its own neighbour
    metric         euclidean, cosine (1 - cos), or whitened (Mahalanobis under the covariance of the bank)
    backend        torch, faiss, or auto: a k-d tree for at most 8 features on one CPU rank; torch for a set against
                   itself or where the device has a fast short format; else faiss if it is installed
    ->             numpy arrays: distances float64 [n, k] ascending, ids int64 [n, k], for this rank's queries

    All back ends compute the returned distances as direct float64 sums, in which differences below 1e-162 count as 0.
    A candidate list holds the true neighbours if every row outside it is certainly further away than the k-th distance
    inside. The torch back end takes *all* rows that its certified intervals do not rule out (see `bounds`); if the
    intervals are too wide, it uses a longer format. faiss and the tree are asked for more than k neighbours, and the
    condition is checked for each query with the error bound of their distances. Where it fails, they are asked for
    still more. Queries that fail to the end go to the torch back end.
    TF32 and reduced-precision sums are off during the call, also for the other threads of the process.
    Raises UserError for unusable input, and InexactProductError when matrix products are less exact than promised.
    """
    world = World() if world is None else world
    q = checked(queries, "queries", world)
    b = q if bank is queries else checked(bank, "bank", world)
    _check_call(q, b, k, exclude_self, backend)
    for own, name in ((q, "queries"), (b, "bank")):
        check_rows(metric, own, name)
    fitted = fit_metric(metric, b)
    for own, name in ((q, "queries"), (b, "bank")):
        check_mapped(fitted, own, name)
    form = shortest_format(fitted.rows(b.rows[:0]), fitted.rows(q.rows[:0]))
    frame = Frame.of(fitted.rows(b.rows[:: max(1, len(b.rows) // 1024)]), world)
    same = exclude_self or bank is queries
    kind = _index_kind(backend, q, form.blocked or same)
    parts = Parts(q, k, exclude_self, fitted, frame, form)
    if same and kind is None:
        parts.search_each_other()
    else:
        parts.search_bank(b, kind)
    distances, ids = fitted.report(parts.best[0]).cpu().numpy(), parts.best[1].cpu().numpy()
    assert np.isfinite(distances).all(), "every query has k neighbours"
    return distances, ids


def checked(features: Any, name: str, world: World) -> RankRows:
    """The rows as a RankRows. Every rank raises the same UserError if any rank's rows are unusable.

    A World on GPUs moves them to its device; otherwise tensors stay where they are. A GPU's products are proved first.
    Ranks that hold rows must have the same dtype. A rank without rows takes the dtype of the others.
    """

    def ready() -> Tensor:
        rows = as_rows(features, name, world.device if world.device.type != "cpu" else None)
        if rows.device.type == "cuda":
            prove(rows.device)
        return rows

    rows = world.agree(ready)
    mine = (len(rows), rows.shape[1], rows.dtype, first_bad_row(rows))
    answers: list[tuple[int, int, torch.dtype, tuple[int, float] | None]] = world.gather_objects(mine)
    held = [answer for answer in answers if answer[0]] or answers
    offset, (_, first_width, dtype, _) = 0, held[0]
    for count, width, _, bad in answers:
        if width != first_width:
            raise UserError(f"{name}: ranks hold {first_width} and {width} features per row: they must be equal")
        if bad:
            raise bad_row_error(name, offset + bad[0], bad[1])
        offset += count
    others = sorted({str(other).removeprefix("torch.") for _, _, other, _ in held})
    if len(others) > 1:
        raise UserError(f"{name}: ranks hold rows of {' and '.join(others)}: every rank must pass the same dtype")
    return RankRows(rows.to(dtype), tuple(count for count, _, _, _ in answers), world)


def check_device(own: RankRows, other: RankRows, name: str, other_name: str) -> None:
    """Raises UserError if the rows are on different devices."""
    if own.rows.device != other.rows.device:
        places = f"on {other.rows.device}, but {name} are on {own.rows.device}"
        raise UserError(f"{other_name}: {places}: pass both on one device, or a World that has one")


def _check_call(q: RankRows, b: RankRows, k: int, exclude_self: bool, backend: str) -> None:
    if backend not in ("auto", "torch", "faiss"):
        raise unknown("backend", backend, ("auto", "torch", "faiss"))
    if backend == "faiss" and not has_faiss(q.rows.device.type):
        extra = "cuda" if q.rows.device.type == "cuda" else "cpu"
        raise UserError(f"backend: faiss is not installed for this device; install entroloop[{extra}] or use torch")
    if b.total == 0:
        raise UserError("bank: holds no rows")
    if q.rows.shape[1] != b.rows.shape[1]:
        raise UserError(f"queries have {q.rows.shape[1]} features, the bank has {b.rows.shape[1]}: they must be equal")
    check_device(q, b, "queries", "bank")
    if exclude_self and q.counts != b.counts:
        raise UserError(f"exclude_self: queries and bank must be the same rows, there are {q.total} and {b.total}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= b.total - exclude_self:
        others = "others" if exclude_self else "bank rows"
        raise UserError(f"k: must be between 1 and the {b.total - exclude_self} {others}, is {k}")


def _index_kind(backend: str, queries: RankRows, torch_is_faster: bool) -> Callable[[Tensor, Frame], Index] | None:
    """The index that proposes neighbours, or None if all are found by products."""
    device, width = queries.rows.device.type, queries.rows.shape[1]
    if backend == "auto" and device == "cpu" and width <= TREE_FEATURES and queries.world.size == 1:
        return lambda block, frame: TreeIndex(block)
    if backend == "faiss" or (backend == "auto" and not torch_is_faster and has_faiss(device)):
        return FaissIndex
    return None
