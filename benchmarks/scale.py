"""Exchanges and bytes of selection at many ranks, counted and by the cost model: `python benchmarks/scale.py`.

The ranks are threads of one process (`tests/thread_world.py`), so the counts are those of real ranks, and the times
mean nothing. Bytes are what the rank that received most received, its own padded part of every gathering included.

    --ranks 2 8        numbers of ranks
    --rows 4096 16384  numbers of rows N, of which half are chosen
    --features 64      features (float32)
    --only NAME        lines whose name contains NAME
    --estimate N D RANKS, --speed   sizes and speed of a rank for the last table, which is computed, not measured
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from thread_world import on_threads

from entroloop.data.world import World
from entroloop.selection import nearest, select

NAMES = ("nearest", "greedy", "threshold-decay", "two levels")
ACTIVE = 8192  # rows that greedy keeps up to date, as a rule
BLOCK = 512  # rows of a block of the threshold filter
PASSES = 20  # of the filter until half of the rows are chosen
GREEDY = 0.6  # pairs that greedy compares per pair of a row and a pick, in the time of a pair of `nearest`


def model(name: str, n: int, d: int, ranks: int) -> tuple[float, float]:
    """Exchanges, and bytes that one rank receives, for N rows of `d` float32 features of which N / 2 are chosen.

    The constants were counted on a mixture of clusters.
    """
    m, row = n // 2, 4 * d + 32  # a proposal travels with its id, its bound and its rank's edge
    if name == "nearest":  # every block visits half of the ranks, and its lists of one neighbour travel home
        return 2 * (ranks // 2) + 5, ranks // 2 * n / ranks * (4 * d + 24)
    if (
        name == "threshold-decay"
    ):  # a row is proposed 1.6 times, and a pass ends with blocks that are not full, or empty
        full, padding = 1.6 * m / BLOCK, min(5 * ranks, BLOCK // 2)
        filled = full + 0.75 * PASSES
        return 2 * full + 3.25 * PASSES + 7, (1.6 * m + 90 * PASSES + padding * filled) * row
    stay = min(m, ACTIVE // 2)  # rows that are proposed and not chosen
    if name == "two levels":  # exact greedy among the rows that the parts chose; the parts need no exchange
        n, stay = int(1.25 * m), min(m, ACTIVE) // 2
    wakes = 1 if n <= ACTIVE else 3 + (n - ACTIVE) / 1100
    blocks = wakes + 12
    room = 1.35 * (m + stay) + blocks * ranks  # rows, padded to the fullest rank
    near = min(ranks, 16) * min(2 * m, 12_000)  # distances inside large blocks, of which few ranks have any
    return 5 + 2 * blocks + wakes, room * row + near * 24


def count(name: str, n: int, d: int, ranks: int) -> tuple[int, int]:
    """The same, counted: the most of any rank."""
    draw = torch.Generator().manual_seed(0)  # 256 clusters, their centres two standard deviations apart per coordinate
    centres = 2 * torch.randn(256, d, generator=draw)
    x = centres[torch.randint(256, (n,), generator=draw)] + torch.randn(n, d, generator=draw)

    def work(world: World) -> tuple[int, int]:
        mine = x[world.share(n)]
        if name == "nearest":
            nearest(mine, mine, exclude_self=True, world=world, backend="torch")
        elif name == "two levels":
            select(mine, n // 2, world=world, parts=1)
        else:
            select(mine, n // 2, name, world=world)
        return world.traffic.exchanges, world.traffic.bytes

    exchanges, received = zip(*on_threads(ranks, work), strict=True)
    return max(exchanges), max(received)


def memory(name: str, n: int, d: int, ranks: int) -> float:
    """Bytes per rank with bfloat16 sketches: its own rows and, for selection, a copy of all chosen rows."""
    one = 4 * d + 2 * (d + 6) + 32  # with the bounds of the sketch, a distance and a counter
    return one * (n / ranks + (0 if name == "nearest" else n // 2))


def pairs(name: str, n: int, ranks: int) -> float:
    """Pairs of rows that a rank compares, in the time of a pair of `nearest`."""
    m = n // 2
    if name == "nearest":
        return n * n / 2 / ranks
    if name == "two levels":
        return GREEDY * 1.25 * (n / ranks * m / ranks + m * m / ranks)
    return GREEDY * n * m / ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--only", default="")
    parser.add_argument("--estimate", type=int, nargs=3, default=[10**8, 384, 512], metavar=("N", "D", "RANKS"))
    parser.add_argument("--speed", type=float, default=120e6, help="pairs per second of a rank, from entroloop doctor")
    options = parser.parse_args()
    names = [name for name in NAMES if options.only in name]
    print("| what | N | ranks | exchanges | model | MB per rank | model | x chosen rows |\n|" + "---|" * 8)
    for name, n, ranks in itertools.product(names, options.rows, options.ranks):
        (exchanges, received), (e, b) = (f(name, n, options.features, ranks) for f in (count, model))
        times = received / (n // 2 * options.features * 4)
        numbers = f"{exchanges} | {e:.0f} | {received / 1e6:.2f} | {b / 1e6:.2f} | {times:.1f}"
        print(f"| {name} | {n:,} | {ranks} | {numbers} |", flush=True)
    n, d, ranks = options.estimate
    print(f"\n{n:,} rows x {d} on {ranks} ranks, by the model:")
    print("| what | exchanges | GB received | GB of memory | hours |\n|" + "---|" * 5)
    for name in names:
        e, b = model(name, n, d, ranks)
        hours = pairs(name, n, ranks) / options.speed / 3600
        print(f"| {name} | {e:,.0f} | {b / 1e9:.0f} | {memory(name, n, d, ranks) / 1e9:.1f} | {hours:.1f} |")


if __name__ == "__main__":
    main()
