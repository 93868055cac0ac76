"""Exact nearest neighbours, computed by blocks of queries and blocks of a bank.

    queries + bank (arrays, memory maps, tensors) -> nearest -> distances float64 [n, k], ids int64 [n, k]

Shapes: n queries, m bank rows, D features, k neighbours, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.memory import free_bytes
from entroloop.data.precision import full_precision
from entroloop.data.registry import unknown
from entroloop.data.world import World
from entroloop.selection.exact import topk
from entroloop.selection.exact.bounds import SWEEP_ROWS, Pairs, Query, contenders, lowest_both
from entroloop.selection.exact.distance import as_rows, bad_row_error, first_bad_row
from entroloop.selection.exact.formats import Format, shortest_format
from entroloop.selection.exact.indices import TREE_FEATURES, FaissIndex, Index, TreeIndex, has_faiss, merge_candidates
from entroloop.selection.exact.rows import Shard
from entroloop.selection.exact.sketch import Columns, Frame, Side, Sketch
from entroloop.selection.exact.spaces import Metric, check_rows, fit_metric

Backend = Literal["auto", "torch", "faiss"]
_BLOCK_SHARE = 1 / 16  # share of the free memory that a bank block and its sketches may use
_BLOCK_BYTES = (1 << 24, 1 << 29)  # least and most memory of a bank block
_PART_ROWS = 1 << 15  # most queries compared at a time
_PART_ELEMENTS = 1 << 24  # most features of such queries
_MERGE_PAIRS = 1 << 18  # pairs collected before they are merged into the lists


@full_precision()
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

    queries, bank  [n, D] and [m, D] float32, float64, float16 or uint8: arrays, tensors or memory maps, which are read
                   in blocks sized by the free memory. With a `world` each rank passes its own rows; ids count bank
                   rows in rank order.
    exclude_self   query i is bank row i and does not count as its own neighbour
    metric         euclidean, cosine (1 - cos), or whitened (Mahalanobis under the covariance of the bank)
    backend        torch, faiss, or auto: a k-d tree for at most 8 features on one CPU rank; torch for a set against
                   itself or where the device has a fast short format; else faiss if it is installed
    ->             numpy arrays: distances float64 [n, k] ascending, ids int64 [n, k], for this rank's queries

    All back ends compute the returned distances as direct float64 sums. A candidate list holds the true neighbours if
    every row outside it is certainly further away than the k-th distance inside. The torch back end takes *all* rows
    that its certified intervals do not rule out (see `bounds`); if the intervals are too wide, it uses a longer format.
    faiss and the tree are asked for more than k neighbours, and the condition is checked for each query with the error
    bound of their distances. Where it fails, they are asked for still more. Queries that fail to the end go to the
    torch back end.
    TF32 and reduced-precision sums are off during the call, also for the other threads of the process.
    Raises UserError for unusable input, and InexactProductError when matrix products are less exact than promised.
    """
    world = World() if world is None else world
    q = checked(queries, "queries", world)
    b = q if bank is queries else checked(bank, "bank", world)
    _check_call(q, b, k, exclude_self, backend)
    for shard, name in ((q, "queries"), (b, "bank")):
        check_rows(metric, shard, name)
    fitted = fit_metric(metric, b)
    form = shortest_format(fitted.rows(b.rows[:0]), fitted.rows(q.rows[:0]))
    frame = Frame.of(fitted.rows(b.rows[:: max(1, len(b.rows) // 1024)]), world)
    same = exclude_self or bank is queries
    kind = _index_kind(backend, q, form.blocked or same)
    parts = _Parts(q, k, exclude_self, fitted, frame, form)
    own = range(q.offset, q.offset + len(q.rows)) if same and kind is None else range(0)
    if own:
        parts.search_each_other()
    for block, first in _travelling(b):
        if first in own:
            continue
        block = fitted.rows(block)
        index = kind(block, frame) if kind else None
        columns: Columns | None = None
        for start in parts.starts:
            lists, ignore = parts.lists(start), parts.ignored(start, first)
            rest = None
            if index:
                rest = merge_candidates(index, parts.rows(start), block, first, lists, ignore)
                if len(rest) == 0:
                    continue
            columns = columns or Columns.of(Side(block, Sketch.of(block, frame, form)))
            _search(parts.side(start), columns, first, lists, ignore, frame, rest)
    best = parts.best
    assert len(q.rows) == 0 or bool(torch.isfinite(best[0]).all()), "every query has k neighbours"
    return fitted.report(best[0]).cpu().numpy(), best[1].cpu().numpy()


class _Parts:
    """The queries in parts, with their sketches and their lists of nearest rows."""

    def __init__(self, queries: Shard, k: int, exclude_self: bool, fitted: Metric, frame: Frame, form: Format) -> None:
        self.queries, self.exclude_self, self.fitted, self.frame, self.form = queries, exclude_self, fitted, frame, form
        n, width = queries.rows.shape
        self.best = topk.empty(n, k, queries.rows.device)
        self.step = max(SWEEP_ROWS, min(_PART_ROWS, _PART_ELEMENTS // width))
        self.starts = range(0, n, self.step)
        self._keep = n * form.columns(width) * form.dtype.itemsize <= _BLOCK_BYTES[1] // 2
        self._sides: dict[int, Side] = {}

    def rows(self, start: int) -> Tensor:
        return self.fitted.rows(self.queries.rows[start : start + self.step])

    def side(self, start: int) -> Side:
        """The rows and their sketch, kept for the next block if all sketches are small."""
        if start in self._sides:
            return self._sides[start]
        rows = self.rows(start)
        side = Side(rows, Sketch.of(rows, self.frame, self.form))
        if self._keep:
            self._sides[start] = side
        return side

    def lists(self, start: int) -> tuple[Tensor, Tensor]:
        """Views of the part's lists."""
        return self.best[0][start : start + self.step], self.best[1][start : start + self.step]

    def ignored(self, start: int, first: int) -> Tensor | None:
        """For each row of the part, itself as a row of a block that begins at the global id `first`."""
        if not self.exclude_self:
            return None
        stop = min(start + self.step, len(self.queries.rows))
        return torch.arange(start, stop, device=self.best[0].device) + (self.queries.offset - first)

    def search_each_other(self) -> None:
        """Merges this rank's rows into each other's lists. Each pair is multiplied once, for both of its rows."""
        for a in self.starts:
            columns = Columns.of(self.side(a))
            for b in self.starts[a // self.step :]:
                side = self.side(b)
                lowest, other = lowest_both(side, columns, self.frame, a == b, self.exclude_self)
                self._search(b, side, a, columns, lowest)
                if a != b:
                    self._search(a, self.side(a), b, Columns.of(side), other)

    def _search(self, start: int, side: Side, block: int, columns: Columns, lowest: Tensor) -> None:
        first = self.queries.offset + block
        _search(side, columns, first, self.lists(start), self.ignored(start, first), self.frame, lowest=lowest)


def checked(features: Any, name: str, world: World) -> Shard:
    """The rows as a Shard. Every rank raises the same UserError if any rank's rows are unusable.

    Ranks that hold rows must have the same dtype. A rank without rows takes the dtype of the others.
    """
    rows = world.agree(lambda: as_rows(features, name, world.device if world.device.type != "cpu" else None))
    mine = (len(rows), rows.shape[1], rows.dtype, first_bad_row(rows))
    answers: list[tuple[int, int, torch.dtype, int]] = world.gather_objects(mine)
    held = [answer for answer in answers if answer[0]] or answers
    offset, (_, first_width, dtype, _) = 0, held[0]
    for count, width, _, bad in answers:
        if width != first_width:
            raise UserError(f"{name}: ranks hold {first_width} and {width} features a row: they must be equal")
        if bad >= 0:
            raise bad_row_error(name, offset + bad)
        offset += count
    others = sorted({str(other).removeprefix("torch.") for _, _, other, _ in held})
    if len(others) > 1:
        raise UserError(f"{name}: ranks hold rows of {' and '.join(others)}: every rank must pass the same dtype")
    return Shard(rows.to(dtype), tuple(count for count, _, _, _ in answers), world)


def _check_call(q: Shard, b: Shard, k: int, exclude_self: bool, backend: str) -> None:
    if backend not in ("auto", "torch", "faiss"):
        raise unknown("backend", backend, ("auto", "torch", "faiss"))
    if backend == "faiss" and not has_faiss(q.rows.device.type):
        extra = "cuda" if q.rows.device.type == "cuda" else "cpu"
        raise UserError(f"backend: faiss is not installed for this device; install entroloop[{extra}] or use torch")
    if b.total == 0:
        raise UserError("bank: holds no rows")
    if q.rows.shape[1] != b.rows.shape[1]:
        raise UserError(f"queries have {q.rows.shape[1]} features, the bank has {b.rows.shape[1]}: they must be equal")
    if exclude_self and q.counts != b.counts:
        raise UserError(f"exclude_self: queries and bank must be the same rows, there are {q.total} and {b.total}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= b.total - exclude_self:
        others = "others" if exclude_self else "bank rows"
        raise UserError(f"k: must be between 1 and the {b.total - exclude_self} {others}, is {k}")


def _index_kind(backend: str, queries: Shard, torch_is_faster: bool) -> Callable[[Tensor, Frame], Index] | None:
    """The index that proposes neighbours, or None if all are found by products."""
    device, width = queries.rows.device.type, queries.rows.shape[1]
    if backend == "auto" and device == "cpu" and width <= TREE_FEATURES and queries.world.size == 1:
        return lambda block, frame: TreeIndex(block)
    if backend == "faiss" or (backend == "auto" and not torch_is_faster and has_faiss(device)):
        return FaissIndex
    return None


def _travelling(bank: Shard) -> Iterator[tuple[Tensor, int]]:
    """Blocks of all ranks' bank rows, each with the global id of its first row. Every block visits every rank once."""
    world = bank.world
    step = _block_rows(bank)
    offsets = [sum(bank.counts[:rank]) for rank in range(world.size)]
    for start in range(0, max(bank.counts), step):
        block = bank.rows[start : start + step]
        for hop in range(world.size):
            source = (world.rank - hop) % world.size
            incoming = min(max(bank.counts[(source - 1) % world.size] - start, 0), step)
            following = world.start_rotate(block, incoming) if hop + 1 < world.size else None
            if len(block):
                yield block, offsets[source] + start
            if following:  # it arrived while the caller used this block
                block = following()


def _block_rows(bank: Shard) -> int:
    """Rows per block, equal on all ranks, from the free memory divided by the ranks, which may share a machine."""
    world, width = bank.world, bank.rows.shape[1]
    smallest, largest = _BLOCK_BYTES
    free = min(world.gather_objects(free_bytes(bank.rows.device)))
    budget = min(max(int(free * _BLOCK_SHARE) // world.size, smallest), largest)
    return max(1024, budget // (16 * width))  # float64 values, sketches, and the copy in transfer


def _search(
    side: Side,
    columns: Columns,
    first: int,
    lists: tuple[Tensor, Tensor],
    ignore: Tensor | None,
    frame: Frame,
    rest: Tensor | None = None,
    lowest: Tensor | None = None,
) -> None:
    """Merges one bank block into the queries' lists, in place. `rest` limits this to some queries; None: all.

    `lowest` are products that `contenders` then need not compute.
    """
    if rest is not None:
        some = lists[0][rest], lists[1][rest]
        _search(side.take(rest), columns, first, some, None if ignore is None else ignore[rest], frame)
        lists[0][rest], lists[1][rest] = some
        return
    k = lists[0].shape[1]
    done = torch.zeros(len(lists[0]), dtype=torch.bool, device=side.rows.device)
    waiting: list[Pairs] = []
    query = Query(lists[0][:, -1].clone(), k, ignore=ignore, done=done)
    for pairs in contenders(side, columns, query, frame, lowest):
        waiting.append(pairs)
        if sum(len(i) for i, _, _ in waiting) >= _MERGE_PAIRS:
            last = int(pairs[1].max())
            _merge(waiting, first, lists)
            waiting = []
            # No row is nearer than 0, and all remaining rows of this block have larger ids.
            done |= (lists[0][:, -1] == 0) & (lists[1][:, -1] <= first + last)
    if waiting:
        _merge(waiting, first, lists)


def _merge(pairs: list[Pairs], first: int, lists: tuple[Tensor, Tensor]) -> None:
    """Merges the pairs into the lists, in place."""
    i, j, distance = (torch.cat(part) for part in zip(*pairs, strict=True))
    rows, offered = topk.from_pairs(i, distance, j + first, lists[0].shape[1])
    merged = topk.merge((lists[0][rows], lists[1][rows]), offered, lists[0].shape[1])
    lists[0][rows], lists[1][rows] = merged
