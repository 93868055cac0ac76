"""Greedy selection: farthest-point sampling (Gonzalez 1985), exact, in blocks of picks.

    RankRows + size + start  ->  ids in the order picked, radii

Each round forms a block of the rows with the largest distances to the picks so far, and runs the sequential greedy
inside the block. While the block's maximum is above every distance outside (ties: the smaller id), it is the global
argmax, because distances outside can only fall. Then one matrix product updates the other rows by all picks of the
block (`frontier`). Every rank proposes its own farthest rows and all ranks run the same block, so the ranks exchange
rows once per block, not once per pick.

Shapes: N rows of all ranks, D features, B rows of a block.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.selection.exact.blocks import Block
from entroloop.selection.exact.frontier import CHOSEN, Frontier
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.options import check_row
from entroloop.selection.rules.problem import Problem, Selection

SMALLEST_BLOCK = 128
LARGEST_BLOCK = 4096
_ACTIVE = 4096  # rows kept up to date at a time; more over several ranks or on a GPU
_SPARE = 2  # times the rows still to be picked that are kept up to date or put into a block at most, on one rank
_SPARE_OF_RANKS = 4.5  # the same with several ranks, where one round more costs more than the rows
_FEW = 2048  # rows of which more than needed cost less than a further round
_PAIRS = 4096  # distances inside a block below which it is never too large
_GPU_BLOCK = LARGEST_BLOCK  # rows of the first block on a GPU
_GPU_PAIRS = 1 << 23  # on a GPU, where a block costs hundreds of launches whatever its size
_PAIRS_A_PICK = 8  # distances per pick inside a block; above this number the block is too large
_QUANTILES = 64  # quantiles of its largest bounds that each rank sends when ranks agree on a level


def greedy(
    own: RankRows, size: int, start: int, on_progress: Callable[[int], None] = lambda new: None
) -> tuple[Tensor, Tensor]:
    """Every pick is an argmax of the distance to the picks before it; ties go to the smaller id.

    size   at most the number of rows of all ranks
    start  global id of the first pick
    on_progress  called after each block with its number of picks
    ->     ids int64 [size] in the order picked, radii float64 [size]: distance to the picks before (inf for the first);
           the same on every rank
    """
    frontier = Frontier(own, size)
    frontier.begin(start)
    radii = np.full(size, np.inf)
    on_gpu = own.rows.device.type == "cuda"
    block_size, level = _GPU_BLOCK if on_gpu else SMALLEST_BLOCK, np.inf
    few = _GPU_PAIRS if on_gpu else _PAIRS
    held, marks = _survey(frontier, level, _useful(frontier))
    while frontier.count < size:
        useful = _useful(frontier)
        if not any(held):
            level = _level(marks, useful)
            if level == 0:
                # Only duplicates of picks are left, all at distance 0; they are chosen by ascending id.
                radii[frontier.count :] = 0.0
                frontier.fill(torch.arange(own.total))
                break
            awake = (frontier.bound >= level).nonzero()[:, 0]
            frontier.activate(frontier.refresh(awake, level))
            held, marks = _survey(frontier, level, useful)
            if not any(held):
                continue
        ids, bound, rows, edge = _propose(frontier, min(block_size, useful), held)
        points = frontier.points(ids, rows)
        block = Block(points, bound, own.world)
        picks = _pick(block, bound, ids.cpu().numpy(), edge, level, radii[frontier.count :])
        _store(frontier, ids, bound)
        on_progress(len(picks))
        order = torch.tensor(picks, device=ids.device)
        frontier.admit(ids[order], points.take(order), level)
        if len(ids) == sum(held):  # no row is active any more, and every rank knows the bounds of those that were
            left = torch.from_numpy(bound)
            held, marks = [], torch.cat([marks, torch.stack([left, torch.ones_like(left)], 1)])
        elif frontier.count < size:
            held, marks = _survey(frontier, level, useful)
        if block.pairs > max(few, _PAIRS_A_PICK * len(picks)):
            block_size = max(SMALLEST_BLOCK, min(len(ids), block_size // 2))
        elif block.pairs < max(few // 2, _PAIRS_A_PICK // 2 * len(picks)):
            block_size = min(LARGEST_BLOCK, block_size * 2)
    return frontier.chosen.cpu(), torch.from_numpy(radii)


def _useful(frontier: Frontier) -> int:
    """The number of rows of all ranks that are worth keeping up to date now."""
    rest = len(frontier.chosen) - frontier.count
    if frontier.own.rows.device.type == "cuda":
        return 2 * _ACTIVE  # more than may be needed, because each round costs launches
    if frontier.own.world.size > 1:  # more than may be needed, because each round costs exchanges
        spare = int(_SPARE_OF_RANKS * rest)
        return max(_ACTIVE, min(3 * _ACTIVE, 4 * frontier.count, spare))  # the first picks lower most bounds
    return min(_ACTIVE, max(_FEW, _SPARE * rest))


def _pick(
    block: Block,
    bound: NDArray[np.float64],
    ids: NDArray[np.int64],
    edge: tuple[float, int],
    level: float,
    radii: NDArray[np.float64],
) -> list[int]:
    """Runs sequential greedy while the block's maximum is above all rows outside. Changes `bound` and `radii`."""
    picks: list[int] = []
    limit, limit_id = max(edge[0], level), edge[1] if edge[0] >= level else np.iinfo(np.int64).max
    now = bound.tolist()
    heap = [(-radius, row) for row, radius in enumerate(now)]
    heapq.heapify(heap)
    while heap and len(picks) < len(radii):
        radius, pick = -heap[0][0], heap[0][1]
        if radius != now[pick]:  # an entry from before its bound was lowered
            heapq.heappop(heap)
            continue
        if radius < limit or (radius == limit and ids[pick] > limit_id):
            break
        heapq.heappop(heap)
        radii[len(picks)] = radius
        picks.append(pick)
        now[pick] = CHOSEN
        for row, distance in block.near(pick):
            if distance < now[row]:
                now[row] = distance
                heapq.heappush(heap, (-distance, row))
    bound[:] = now
    return picks


def _propose(
    frontier: Frontier, block_size: int, held: list[int]
) -> tuple[Tensor, NDArray[np.float64], Tensor | None, tuple[float, int]]:
    """The next block, the same on every rank, in ascending order of ids.

    held  number of active rows of each rank
    -> ids [B], their bounds [B], their rows [B, D] (None with one rank), and the edge: the largest (bound, id) outside
    """
    own = frontier.own
    active = frontier.active
    bound = frontier.bound[active]
    most = min(-(-block_size // own.world.size), max(held))
    edge, edge_id = CHOSEN, 0
    if len(active) > most:
        kth = torch.topk(bound, most).values[-1]
        inside = bound > kth
        ties = (bound == kth).nonzero()[:, 0]
        inside[ties[: most - int(inside.sum())]] = True
        outside = ~inside
        edge = float(bound[outside].max())
        edge_id = int(active[outside][bound[outside] == edge][0]) + own.offset
        active, bound = active[inside], bound[inside]
    if own.world.size == 1:
        return active, bound.cpu().numpy(), None, (edge, edge_id)
    ids, bound, rows, edges = own.share(active, bound, [min(most, count) for count in held], (edge, edge_id))
    highest = max(edges, key=lambda e: (e[0], -e[1]))
    return ids, bound.cpu().numpy(), rows, (highest[0], int(highest[1]))


def _store(frontier: Frontier, ids: Tensor, bound: NDArray[np.float64]) -> None:
    """Copies the bounds found inside a block back to the rows of this rank."""
    place, local = frontier.own.owned(ids)
    frontier.bound[local] = torch.from_numpy(bound).to(frontier.bound.device)[place]


def _survey(frontier: Frontier, level: float, wanted: int) -> tuple[list[int], Tensor]:
    """The number of active rows of each rank, and marks that tell how the largest bounds below the level lie.

    level   rows with bounds below it sleep
    wanted  rows of each rank that the marks stand for, at most
    ->      counts; marks float64 [M, 2] on the CPU: a bound, and the number of rows that it stands for
    """
    own, bound = frontier.own, frontier.bound
    looked_at = [min(wanted, count) for count in own.counts]
    quantiles = torch.full((_QUANTILES,), CHOSEN, dtype=torch.float64, device=bound.device)
    if len(bound):
        top = torch.topk(torch.where(bound < level, bound, CHOSEN), looked_at[own.world.rank]).values
        quantiles = top[torch.linspace(0, len(top) - 1, _QUANTILES, device=bound.device).long()]
    message = torch.cat([quantiles.new_tensor([len(frontier.active)]), quantiles])[None]
    found = own.world.gather_rows(message, [1] * own.world.size).cpu()
    rows = (torch.tensor(looked_at, dtype=torch.float64) / _QUANTILES).repeat_interleave(_QUANTILES)
    return found[:, 0].long().tolist(), torch.stack([found[:, 1:].flatten(), rows], 1)


def _level(marks: Tensor, wanted: int) -> float:
    """The bound above which about that many rows lie; 0 if no row has a positive bound. Marks as from `_survey`."""
    bounds, order = marks[:, 0].sort(descending=True)
    if float(bounds[0]) <= 0:
        return 0.0
    woken = marks[order, 1].cumsum(0)
    level = float(bounds[min(int((woken < wanted).sum()), len(bounds) - 1)])
    return max(level, float(np.nextafter(0, 1)))


def two_level_greedy(
    own: RankRows, size: int, start: int, parts: int, oversample: float
) -> tuple[Tensor, Tensor, float]:
    """Greedy in each part of each rank's rows, then exact greedy among the rows chosen.

    parts       number of parts of equal length into which this rank's rows are cut
    oversample  each part chooses this many times its share of `size` (at most all of its rows)
    ->          ids, radii as from `greedy`, and the cover: every row of all ranks is within this distance of a pick.
                The cover is the largest distance of a row to a local pick plus the largest distance of a local pick to
                a final pick. If every part chose `size` rows, the cover would be at most 4 times the best possible
                cover (Malkomes et al. 2015) and the smallest distance at least a sixth of the best (Indyk et al. 2014).
    """
    world, offset = own.world, own.offset
    taken, local_cover = [], 0.0
    for rows in torch.arange(len(own.rows), device=own.rows.device).tensor_split(parts):
        if len(rows) == 0:
            continue
        share = min(len(rows), int(np.ceil(oversample * size * len(rows) / own.total)))
        part = RankRows.of(own.rows[rows[0] : rows[-1] + 1])
        first = start - offset - int(rows[0])
        more = min(share + 1, len(rows))  # the radius of one more pick is the cover of the share
        ids, radii = greedy(part, more, first if 0 <= first < len(rows) else 0)
        if more > share:
            local_cover = max(local_cover, float(radii[share]))
        taken.append(rows[ids[:share].to(rows.device)])
    kept = torch.cat(taken).sort().values if taken else torch.empty(0, dtype=torch.int64, device=own.rows.device)
    among = RankRows.of(own.rows[kept], world)
    every = world.gather_rows(kept + offset, among.counts).cpu()
    more = min(size + 1, among.total)
    ids, radii = greedy(among, more, int((every == start).nonzero()[0, 0]))
    rest = float(radii[size]) if more > size else 0.0
    covers = world.all_reduce(torch.tensor([local_cover], dtype=torch.float64), "max")
    return every[ids[:size]], radii[:size], float(covers) + rest


def greedy_selection(problem: Problem, *, start: int = -1, parts: int = 0, oversample: float = 1.25) -> Selection:
    """Farthest-point sampling.

    start       id of the first pick; negative: a random row
    parts       0: exact. Else two levels, an approximation for sizes beyond exact reach: each rank's rows are cut into
                this many parts, greedy chooses in each part, and exact greedy chooses among the rows chosen
    oversample  each part chooses this many times its share
    """
    check_row("start", start, problem.candidates.total)
    first = start if start >= 0 else int(problem.order()[0])
    if parts == 0:
        return problem.selection(*greedy(problem.candidates, problem.size, first, problem.on_progress))
    ids, radii, cover = two_level_greedy(problem.candidates, problem.size, first, parts, oversample)
    return problem.selection(ids, radii, cover=cover)
