"""Lists of the nearest rows of queries, which are compared part by part with blocks of a bank.

    queries RankRows + bank RankRows -> Parts -> lists: distances float64 [n, k], ids int64 [n, k]

The blocks of all ranks travel around a ring. Where the queries are the bank, each pair of rows is multiplied once, for
both of its rows: a block travels half the ring, and the lists that it collected on the way travel back.

Shapes: n queries, m rows of a block, D features, k neighbours, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from entroloop.data.memory import free_bytes
from entroloop.selection.exact import topk
from entroloop.selection.exact.bounds import SWEEP_ROWS, Pairs, contenders, lowest_both
from entroloop.selection.exact.formats import NumberFormat
from entroloop.selection.exact.indices import Index, merge_candidates
from entroloop.selection.exact.rows import RankRows, pack, unpack
from entroloop.selection.exact.sketch import Frame, Sketch, tile_columns
from entroloop.selection.exact.spaces import Metric

Lists = tuple[Tensor, Tensor]  # distances float64 [n, k], ids int64 [n, k]
_BLOCK_SHARE = 1 / 16  # share of the free memory that a bank block and its sketches may use
_BLOCK_BYTES = (1 << 24, 1 << 29)  # least and most memory of a bank block
_PART_ROWS = 1 << 15  # most queries compared at a time
_PART_ELEMENTS = 1 << 24  # most features of such queries
_MERGE_PAIRS = 1 << 18  # pairs collected before they are merged into the lists


class Parts:
    """The queries in parts, with their sketches and their lists of nearest rows."""

    def __init__(
        self, queries: RankRows, k: int, exclude_self: bool, fitted: Metric, frame: Frame, form: NumberFormat
    ) -> None:
        self.queries, self.exclude_self, self.fitted, self.frame, self.form = queries, exclude_self, fitted, frame, form
        n, width = queries.rows.shape
        self.best = topk.empty(n, k, queries.rows.device)
        self.step = max(SWEEP_ROWS, min(_PART_ROWS, _PART_ELEMENTS // width))
        self.starts = range(0, n, self.step)
        self._keep = n * form.columns(width, queries.rows.device) * form.dtype.itemsize <= _BLOCK_BYTES[1] // 2
        self._sides: dict[int, Sketch] = {}

    def rows(self, start: int) -> Tensor:
        return self.fitted.rows(self.queries.rows[start : start + self.step])

    def side(self, start: int) -> Sketch:
        """The rows and their sketch, kept for the next block if all sketches are small."""
        if start in self._sides:
            return self._sides[start]
        side = self._sketched(self.rows(start))
        if self._keep:
            self._sides[start] = side
        return side

    def _sketched(self, rows: Tensor) -> Sketch:
        return Sketch.of(rows, self.frame, self.form)

    def lists(self, start: int) -> Lists:
        """Views of the part's lists."""
        return self.best[0][start : start + self.step], self.best[1][start : start + self.step]

    def _ignored(self, start: int, first: int) -> Tensor | None:
        """For each row of the part, itself as a row of a block that begins at the global id `first`."""
        if not self.exclude_self:
            return None
        stop = min(start + self.step, len(self.queries.rows))
        return torch.arange(start, stop, device=self.best[0].device) + (self.queries.offset - first)

    def search_bank(self, bank: RankRows, index_of: Callable[[Tensor, Frame], Index] | None) -> None:
        """Merges the bank rows of all ranks into the lists. An index of each block may propose candidates first."""
        for block, first in _travelling(bank):
            block = self.fitted.rows(block)
            index = index_of(block, self.frame) if index_of else None
            columns: Sketch | None = None
            for start in self.starts:
                lists, ignore, rest = self.lists(start), self._ignored(start, first), None
                if index:
                    rest = merge_candidates(index, self.rows(start), block, first, lists, ignore)
                    if len(rest) == 0:
                        continue
                columns = columns or self._sketched(block).turn()
                _search(self.side(start), columns, first, lists, ignore, rest)

    def search_each_other(self) -> None:
        """Merges the rows of all ranks into each other's lists. Each pair is multiplied once, for both of its rows."""
        self._search_own()
        own, world = self.queries, self.queries.world
        half = world.size // 2
        if half == 0:
            return
        step = _block_rows(own, 16 * self.best[0].shape[1] * half)
        for start in range(0, max(own.counts), step):
            part, answers = slice(start, start + step), []
            block = pack(own.rows[part], self.best[0][part, -1:])  # only nearer rows matter
            held = [min(max(count - start, 0), step) for count in own.counts]  # rows of each rank's block
            for hop in range(half + 1):
                coming = held[(world.rank - hop - 1) % world.size]
                following = world.start_rotate(block, coming) if hop < half else None
                if hop:
                    rows, level = unpack(block, own.rows)
                    answers.append(self._search_both(rows, level[:, 0], (world.rank - hop) % world.size, start))
                if following:
                    block = following()
            distances, ids = (x[part] for x in self.best)
            merged = topk.merge((distances, ids), self._bring_home(answers, held), distances.shape[1])
            distances[:], ids[:] = merged

    def _search_own(self) -> None:
        for a in self.starts:
            columns = self.side(a).turn()
            for b in self.starts[a // self.step :]:
                side = self.side(b)
                lowest = None  # of a single tile: of no use
                if len(self.queries.rows) > tile_columns(side.rows.device):
                    ignore = self._ignored(b, self.queries.offset + b) if a == b else None
                    lowest, other = lowest_both(side, columns, a == b, ignore)
                self._search_part(b, side, a, columns, lowest)
                if a != b:
                    self._search_part(a, self.side(a), b, side.turn(), other)

    def _search_part(self, start: int, side: Sketch, block: int, columns: Sketch, lowest: Tensor | None) -> None:
        first = self.queries.offset + block
        _search(side, columns, first, self.lists(start), self._ignored(start, first), lowest=lowest)

    def _search_both(self, block: Tensor, level: Tensor, source: int, start: int) -> Lists:
        """Merges another rank's block into the lists. Returns the lists of the block's rows among these queries.

        level  float64 [m]: rows further from a row of the block than this are of no use to its list
        Two ranks that hold each other's blocks share the work: the lower rank compares the first half of its rows.
        """
        own = self.queries
        rank, size = own.world.rank, own.world.size
        answers = topk.empty(len(block), self.best[0].shape[1], block.device)
        mine, skipped = len(own.rows), 0
        if 2 * ((rank - source) % size) == size:
            if rank < source:
                mine //= 2
            else:
                skipped = max(own.counts[source] // 2 - start, 0)
        if skipped >= len(block):
            return answers
        other = self._sketched(self.fitted.rows(block[skipped:]))
        columns, first = other.turn(), sum(own.counts[:source]) + start + skipped
        for top in range(0, mine, self.step):
            count = min(mine - top, self.step)
            side = self.side(top).take(slice(0, count))
            lowest, opposite = lowest_both(side, columns)
            distances, ids = self.lists(top)
            _search(side, columns, first, (distances[:count], ids[:count]), None, lowest=lowest)
            theirs = answers[0][skipped:], answers[1][skipped:]
            _search(other, side.turn(), own.offset + top, theirs, None, lowest=opposite, level=level[skipped:])
        return answers

    def _bring_home(self, answers: list[Lists], held: list[int]) -> Lists:
        """Sends the lists of other ranks' blocks back along the ring. Returns this rank's, merged on their way.

        answers[h - 1]  lists of the block of the rank h places behind
        """
        world, k = self.queries.world, self.best[0].shape[1]
        carried: Lists | None = None
        for hop in range(len(answers), 0, -1):
            distances, ids = topk.merge(answers[hop - 1], carried, k) if carried else answers[hop - 1]
            packed = torch.cat([distances, ids.double()], 1)  # ids are exact below 2^53
            packed = world.start_rotate(packed, held[(world.rank - hop + 1) % world.size], by=-1)()
            carried = packed[:, :k], packed[:, k:].long()
        assert carried is not None
        return carried


def _travelling(bank: RankRows) -> Iterator[tuple[Tensor, int]]:
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


def _block_rows(bank: RankRows, kept: int = 0) -> int:
    """Rows per block, equal on all ranks, from the free memory divided by the ranks, which may share a machine.

    kept  further bytes that are kept per row
    """
    world, width = bank.world, bank.rows.shape[1]
    smallest, largest = _BLOCK_BYTES
    free = min(world.gather_objects(free_bytes(bank.rows.device)))
    budget = min(max(int(free * _BLOCK_SHARE) // world.size, smallest), largest)
    return max(1024, budget // (16 * width + kept))  # float64 values, sketches, and the copy in transfer


def _search(
    side: Sketch,
    columns: Sketch,
    first: int,
    lists: Lists,
    ignore: Tensor | None,
    rest: Tensor | None = None,
    lowest: Tensor | None = None,
    level: Tensor | None = None,
) -> None:
    """Merges one bank block into the queries' lists, in place. `rest` limits this to some queries; None: all.

    `lowest` are products that `contenders` then need not compute. Rows further away than `level` may be left out.
    """
    if rest is not None:
        some = lists[0][rest], lists[1][rest]
        _search(side.take(rest), columns, first, some, None if ignore is None else ignore[rest])
        lists[0][rest], lists[1][rest] = some
        return
    level = lists[0][:, -1].clone() if level is None else torch.minimum(lists[0][:, -1], level)
    waiting: list[Pairs] = []
    for pairs in contenders(side, columns, level, lists[0].shape[1], ignore=ignore, lowest=lowest):
        waiting.append(pairs)
        if sum(len(i) for i, _, _ in waiting) >= _MERGE_PAIRS:
            last = int(pairs[1].max())
            _merge(waiting, first, lists)
            waiting = []
            # No row is nearer than 0, and all remaining rows of this block have larger ids.
            level.masked_fill_((lists[0][:, -1] == 0) & (lists[1][:, -1] <= first + last), -1)
    if waiting:
        _merge(waiting, first, lists)


def _merge(pairs: list[Pairs], first: int, lists: Lists) -> None:
    """Merges the pairs into the lists, in place."""
    i, j, distance = pairs[0] if len(pairs) == 1 else (torch.cat(part) for part in zip(*pairs, strict=True))
    if lists[0].shape[1] == 1:
        topk.take_nearest(lists, i, distance, j + first)
        return
    rows, offered = topk.from_pairs(i, distance, j + first, lists[0].shape[1])
    merged = topk.merge((lists[0][rows], lists[1][rows]), offered, lists[0].shape[1])
    lists[0][rows], lists[1][rows] = merged
