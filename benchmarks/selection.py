"""Times of selection as ratios within one process: `python benchmarks/selection.py [--device cuda] [--out FILE.json]`.

Every line times a baseline and ours several times, alternating, so that other load affects both. It reports the best
time of each and their ratio. OMP_NUM_THREADS or --threads sets the threads. Lines of two ranks, and of peak memory,
start processes of their own.

    --only NAME          lines whose name contains NAME
    --features FILE.npy  adds a set of your own, such as the samples of a collapsed loop
    --quick              divides the number of rows by 8
    --large              adds 10^6 -> 5 * 10^5 rows, meant for a GPU; under torchrun
                         (`torchrun --nproc_per_node 8 benchmarks/selection.py --large --device cuda`)
                         only that line runs, over all ranks
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import (
    FASHION,
    collapsed,
    dense,
    dense_against,
    faiss_nearest,
    fashion,
    keep_freed_memory,
    machine,
    mixture,
    published_greedy,
    published_threshold,
    seconds,
    stored,
)

from entroloop.data.world import World, join, leave
from entroloop.selection import kl_entropy, nearest, select


@dataclass
class Line:
    """One comparison: seconds of the baseline and of ours (best of several), their ratio, and the goal."""

    name: str
    baseline: float
    ours: float
    ratio: float
    goal: str
    met: bool


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.lines: list[Line] = []
        self.notes: dict[str, Any] = {}

    def wanted(self, name: str) -> bool:
        return self.options.only in name

    def compare(self, name: str, baseline: Callable[[], Any], ours: Callable[[], Any], goal: float) -> None:
        """goal: the largest ratio ours / baseline that is good enough."""
        if not self.wanted(name):
            return
        best = [float("inf"), float("inf")]
        for _ in range(self.options.repeats):
            for which, run in enumerate((baseline, ours)):
                best[which] = min(best[which], seconds(run, self.device))
        ratio = best[1] / best[0]
        text = f"<= {goal:g}" if goal >= 0.5 else f"{1 / goal:.0f} x faster"
        self.add(Line(name, best[0], best[1], ratio, text, ratio <= goal))

    def add(self, line: Line) -> None:
        self.lines.append(line)
        faster = f"{line.ratio:8.3f}" if line.ratio >= 0.1 else f"1/{1 / line.ratio:6.0f}"
        verdict = "yes" if line.met else "NO"
        numbers = f"{line.baseline:9.3f} {line.ours:9.3f} {faster:>9}"
        print(f"{line.name:58} {numbers} {line.goal:>16} {verdict:>4}", flush=True)

    def run(self) -> None:
        n = 65_536 // (8 if self.options.quick else 1)
        sets: dict[str, Callable[[int], torch.Tensor]] = {
            "mixture": lambda k: mixture(k, 384),
            "collapsed": lambda k: collapsed(k, 384),
        }
        if FASHION.exists():
            sets["fashion pixels"] = lambda k: fashion(min(k, 60_000))
        for path in self.options.features:
            sets[path.stem] = partial(stored, path)
        for kind, make in sets.items():
            x = make(n).to(self.device)
            m = len(x) // 2
            self.against_dense(f"greedy {len(x)} -> {m}, {kind}", x, m, "greedy", 1.0)
            self.against_dense(f"threshold-decay {len(x)} -> {m}, {kind}", x, m, "threshold-decay", 1.2)
        self.against_published()
        for k, d in ((16_384, 384), (8_192, 3072)):
            name, rows = f"nearest {k} x {d} against faiss", mixture(k, d).numpy()
            self.compare(name, partial(faiss_nearest, rows), partial(nearest, rows, rows, exclude_self=True), 1.2)
        self.memory(262_144 // (8 if self.options.quick else 1))
        for total in (32_768, 65_536):
            self.ranks(total // (8 if self.options.quick else 1))
        self.two_level()
        self.adaptive()
        if self.options.large:
            x = mixture(1_000_000, 384).to(self.device)
            self.against_dense("greedy 10^6 -> 5 10^5", x, 500_000, "greedy", 1.0)

    def against_dense(self, name: str, x: torch.Tensor, m: int, strategy: str, goal: float) -> None:
        self.compare(name, lambda: dense(x, m), lambda: select(x, m, strategy), goal)

    def against_published(self) -> None:
        x = mixture(16_384 // (8 if self.options.quick else 1), 384).to(self.device)
        m = len(x) // 2
        name = f"greedy {len(x)} -> {m} against the published form"
        self.compare(name, lambda: published_greedy(x, m), lambda: select(x, m, "greedy"), 1 / 80)
        small = x[:4096].cpu().numpy()
        order = np.random.default_rng(0).permutation(len(small))
        m = len(small) // 2
        threshold = float(np.linalg.norm(small[:500] - small[500:1000], axis=1).mean())
        name = f"threshold-decay {len(small)} -> {m} against the published form"
        self.compare(
            name,
            lambda: published_threshold(small, m, order, threshold, 0.95),
            lambda: select(small, m, "threshold-decay", threshold=threshold, decay=0.95),
            1 / 250,
        )

    def memory(self, n: int) -> None:
        name = f"peak memory beyond the features, MiB, {n} x 384"
        if not self.wanted(name):
            return
        out = subprocess.run(
            [sys.executable, __file__, "--memory-worker", str(n)], capture_output=True, text=True, check=True
        )
        features, peak = json.loads(out.stdout.splitlines()[-1])
        self.add(Line(name, features, peak, peak / features, "<= 512 MiB", peak <= 512))

    def ranks(self, n: int) -> None:
        """One and two ranks of one thread, in alternation."""
        for what, goal in (("greedy", 1.5), ("nearest", 1.75)):
            name = f"{what} {n} x 384, two ranks against one"
            if not self.wanted(name):
                continue
            best = {1: float("inf"), 2: float("inf")}
            for _ in range(self.options.repeats):
                for size in best:
                    best[size] = min(best[size], _ranks(what, size, n))
            self.add(Line(name, best[1], best[2], best[2] / best[1], f"{goal} x faster", best[1] / best[2] >= goal))

    def two_level(self) -> None:
        """Loss of entropy of the approximate mode, on real features."""
        if not (self.wanted("two levels") and FASHION.exists()):
            return
        x = fashion(16_384)
        ids = {parts: select(x, 4096, parts=parts).ids for parts in (0, 2, 8, 32)}
        ids[-1] = select(x, 4096, "random").ids
        self.notes["two levels, Fashion-MNIST 16384 -> 4096, nats (0: exact, -1: random)"] = {
            str(parts): round(kl_entropy(x[i]).nats, 1) for parts, i in ids.items()
        }

    def adaptive(self) -> None:
        """adaptive-threshold against the paper's constants, on digits and Fashion-MNIST pixels."""
        if not self.wanted("adaptive"):
            return
        from sklearn.datasets import load_digits

        data = {"digits 1797 -> 500": (torch.from_numpy(load_digits().data.astype(np.float32)), 500)}
        if FASHION.exists():
            data["Fashion-MNIST 16384 -> 4096"] = (fashion(16_384), 4096)
        for name, (x, m) in data.items():
            runs: dict[str, tuple[str, dict[str, Any]]] = {"random": ("random", {}), "greedy": ("greedy", {})}
            runs |= {f"adaptive {s}": ("adaptive-threshold", {"strength": s}) for s in (0.25, 0.5, 0.75, 1.0)}
            runs |= {
                f"paper {t:g}, {d}": ("threshold-decay", {"threshold": float(t), "decay": d})
                for t, d in ((60, 0.95), (60, 0.8), (2000, 0.95))
            }
            self.notes[f"entropy in nats, {name}"] = {
                label: round(kl_entropy(x[select(x, m, strategy, **options).ids]).nats, 2)
                for label, (strategy, options) in runs.items()
            }


def _ranks(what: str, size: int, n: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        base = [sys.executable, __file__, "--rank-worker", what, folder, str(size), str(n)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen([*base, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
            for rank in range(size)
        ]
        answers = [process.communicate()[0] for process in processes]
    return float(answers[0].splitlines()[-1])


def rank_worker(what: str, folder: str, size: int, n: int, rank: int) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":  # as launchers of clusters bind ranks to cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    world = join(rank, size, init_method=f"file://{folder}/rendezvous", device=torch.device("cpu"))
    x = mixture(n, 384)[n * rank // size : n * (rank + 1) // size]
    run = {
        "greedy": lambda: select(x, n // 2, world=world),
        "nearest": lambda: nearest(x, x, exclude_self=True, world=world),
    }[what]
    select(x[:2048], 1024, world=world)  # libraries prepare themselves, and the formats are timed
    world.barrier()
    start = time.perf_counter()
    run()
    world.barrier()
    print(time.perf_counter() - start)
    leave()


def distributed_large() -> None:
    """10^6 -> 5 * 10^5 over the ranks of torchrun, against each rank's share of the dense product."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = join(rank, size, int(os.environ["LOCAL_RANK"]))
    n = 1_000_000
    x = mixture(n, 384)
    mine, right = x[n * rank // size : n * (rank + 1) // size].to(world.device), x[: n // 2].to(world.device)
    product = seconds(lambda: dense_against(mine, right), world.device)
    world.barrier()
    ours = seconds(lambda: select(mine, n // 2, world=world), world.device)
    if world.is_main:
        print(json.dumps({"ranks": size, "dense": product, "greedy": ours, "ratio": ours / product}))
    leave()


def memory_worker(n: int) -> None:
    """Prints MiB of the features and of the peak above what was in use before selecting."""
    x = torch.empty(n, 384)
    for start in range(0, n, 8192):
        x[start : start + 8192] = mixture(min(8192, n - start), 384, seed=start)
    select(x[:2048].clone(), 512, seed=1)  # libraries allocate their own memory once
    before = _peak_kib()
    select(x, n // 2, world=World())
    after = _peak_kib()
    print(json.dumps([x.numel() * 4 / 2**20, (after - before) / 1024]))


def _peak_kib() -> int:
    """Peak memory of this process in KiB. ru_maxrss would not do: a child's begins at its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--features", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank-worker", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--memory-worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_worker:
        what, folder, size, n, rank = options.rank_worker
        rank_worker(what, folder, int(size), int(n), int(rank))
        return
    if options.memory_worker:
        memory_worker(options.memory_worker)
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed_large()
        return
    keep_freed_memory()
    bench = Bench(options)
    about = machine()
    print(json.dumps(about))
    print(f"{'what':58} {'baseline':>9} {'ours':>9} {'ratio':>9} {'goal':>16} {'met':>4}")
    bench.run()
    for note, value in bench.notes.items():
        print(f"{note}: {json.dumps(value)}")
    if options.out:
        result = {"machine": about, "lines": [asdict(line) for line in bench.lines], "notes": bench.notes}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
