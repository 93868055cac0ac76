"""What selection is compared with: sets of points, and the products and published forms that ours are timed against."""

from __future__ import annotations

import ctypes
import gzip
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entroloop.launcher.run.facts import processor

FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed. Otherwise the published form, which allocates two copies of the rows per step, can
    spend most of its time on page faults, or none, as the heap happens to lie."""
    if sys.platform == "linux":
        for parameter, most in ((-1, 2**31 - 1), (-3, 2**30)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL("libc.so.6").mallopt(parameter, most)


def mixture(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """256 Gaussian clusters with centres about two standard deviations apart per coordinate. float32 [n, d]."""
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(256, d, generator=g)
    return centres[torch.randint(256, (n,), generator=g)] + torch.randn(n, d, generator=g)


def collapsed(n: int, d: int) -> torch.Tensor:
    """Points as from a collapsed loop: few originals, each with many copies at most 1 % of its norm away."""
    g = torch.Generator().manual_seed(1)
    originals = mixture(n // 16, d, seed=2)
    noise = torch.randn(n, d, generator=g) * 0.1 * torch.rand(n, 1, generator=g)
    return originals[torch.randint(len(originals), (n,), generator=g)] + noise


def fashion(n: int) -> torch.Tensor:
    """Fashion-MNIST pixels, uint8 [n, 784]."""
    raw = gzip.decompress(FASHION.read_bytes())[16:]
    return torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, 784)[:n].copy())


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def dense(x: torch.Tensor, m: int) -> None:
    """The float32 product N x M x D, in blocks of rows."""
    dense_against(x, x[:m])


def dense_against(x: torch.Tensor, right: torch.Tensor) -> None:
    right = right.float().T
    step = max(256, 2**28 // right.shape[1])
    out = torch.empty(min(step, len(x)), right.shape[1], device=x.device)
    for start in range(0, len(x), step):
        part = x[start : start + step].float()
        torch.mm(part, right, out=out[: len(part)])


def published_greedy(x: torch.Tensor, m: int) -> None:
    """One distance column per step, as published."""
    distance = torch.full((len(x),), torch.inf, device=x.device)
    pick = 0
    for _ in range(m):
        distance = torch.minimum(distance, ((x - x[pick]) ** 2).sum(1))
        pick = int(distance.argmax())


def published_threshold(x: np.ndarray, m: int, order: np.ndarray, threshold: float, decay: float) -> None:
    """The public form: the distance of each candidate to all accepted ones, in numpy."""
    accepted: list[int] = []
    rest = list(order)
    while len(accepted) < m:
        kept = []
        for candidate in rest:
            if len(accepted) < m and (
                not accepted or np.linalg.norm(x[accepted] - x[candidate], axis=1).min() > threshold
            ):
                accepted.append(candidate)
            else:
                kept.append(candidate)
        rest = kept
        threshold *= decay


def stored(path: Path, n: int) -> torch.Tensor:
    return torch.from_numpy(np.load(path)[:n])


def faiss_nearest(x: np.ndarray) -> None:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    index.search(x, 2)


def machine() -> dict[str, Any]:
    """Facts about this machine, with the speed of its products."""
    x, y = torch.randn(4096, 384), torch.randn(4096, 384)
    rates = {}
    for kind in (torch.float32, torch.bfloat16):
        a, b = x.to(kind), y.to(kind).T
        best = min(seconds(partial(torch.mm, a, b), torch.device("cpu")) for _ in range(5))
        rates[str(kind)] = round(2 * 4096 * 4096 * 384 / best / 1e9)
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "product GFLOP/s": rates,
    }
