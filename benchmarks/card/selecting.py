"""Selection: the error of products as a share of their certificates, results against the CPU's, and speed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from card.common import CPU, Card, equal
from entroloop.data.precision import keep_full_precision
from entroloop.data.world import World
from entroloop.selection import nearest, select
from entroloop.selection.exact import bounds, distance, sketch
from entroloop.selection.exact.formats import BF16, F32, INT8, NumberFormat
from entroloop.selection.exact.sketch import Frame, Sketch, product

WIDTHS = (64, 384, 784, 2048, 3072, 12288)
SHAPES = ((2048, 512), (128, 128), (4096, 4096), (8192, 512))


def exactness(card: Card) -> None:
    _products(card)
    n = card.pick(8192, 256)
    for title, rows in _sets(n):
        for name, work in _jobs(rows).items():
            if not card.has(4, f"{name}, {title}"):
                continue
            card.verdict(f"{name}, {title}: ids and distances are the CPU's", equal(work(card.world), work(CPU)))


def _products(card: Card) -> None:
    """The largest error of products by format, as shipped and with the settings that entroloop switches off."""
    card.world  # noqa: B018 - full precision from here on
    for form in (BF16, F32, INT8):
        for name, change in _settings(form).items():
            change()
            worst = max(
                _error(card.device, form, width, *shape)
                for width, shape in itertools.product(card.pick(WIDTHS, (64,)), card.pick(SHAPES, ((128, 128),)))
            )
            keep_full_precision()
            title = f"{form.name} products, {name}: largest error"
            if change is keep_full_precision:
                card.within(title, worst, 1, "of the certificate")
            else:
                card.row(title, worst, "of the certificate")
        launches = card.kernels(
            partial(_error, card.device, form, card.pick(384, 64), card.pick(4096, 128), 128)
        ).launches
        gemm = sorted(kernel for kernel in launches if "gemm" in kernel.lower() or "splitk" in kernel.lower())
        card.row(f"kernels of a {form.name} product", gemm[:4])


def _settings(form: NumberFormat) -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {"as shipped": keep_full_precision}
    if form is BF16:
        found["sums in bfloat16 allowed"] = _allow_short_sums
    if form is F32:
        found["TF32 allowed"] = partial(torch.set_float32_matmul_precision, "high")
    return found


def _allow_short_sums() -> None:
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True


def _error(device: torch.device, form: NumberFormat, width: int, n: int, m: int) -> float:
    """The largest |product - exact| / certificate of n x m products of random rows; 0 / 0 counts as 0."""
    torch.manual_seed(0)
    made: Callable[[int], Tensor] = lambda k: torch.randn(k, width, device=device)  # noqa: E731
    if form is INT8:
        made = lambda k: torch.randint(0, 256, (k, width), device=device, dtype=torch.uint8)  # noqa: E731
    x, y = made(n), made(m)
    frame = Frame.of(x)
    left, right = (Sketch.of(rows, frame, form) for rows in (x, y))
    found = product(left, right.turn())
    wide = found.contiguous().view(torch.bfloat16).double() if form is BF16 else found.double()
    z, w = (s.factor[:, :width].double() * (1 if form is INT8 else -0.5) for s in (left, right))
    exact = z.square().sum(1)[:, None] + w.square().sum(1) - 2 * z @ w.T
    error = left.errors[:, None, 0] + right.errors[:, 0]
    bound = error + 1.01 * form.out * (exact.abs() + error)
    off = (wide - exact).abs()
    return float(torch.where(off > 0, off / bound, 0).max())  # the bound of an exact format is 0


def _sets(n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Rows [N, D] that selections by inexact products get wrong: duplicates, clusters, many features, bytes."""
    r = np.random.default_rng(0)
    yield "Gaussian 384", r.standard_normal((n, 384), np.float32)
    yield "duplicates 384", np.repeat(r.standard_normal((n // 8, 384), np.float32), 8, 0)
    near = np.repeat(r.standard_normal((n // 8, 384), np.float32), 8, 0)
    yield "near-duplicates 384", near + np.float32(1e-3) * r.standard_normal((n, 384), np.float32)
    apart = np.float32(0.05) * r.standard_normal((n, 384), np.float32)
    yield "two far clusters 384", apart + np.where(np.arange(n) < n // 2, 1, -1)[:, None].astype(np.float32)
    yield "Gaussian 2048", r.standard_normal((n // 4, 2048), np.float32)
    yield "bytes 768", r.integers(0, 256, (n, 768), np.uint8)


def _jobs(rows: np.ndarray) -> dict[str, Callable[[World], Any]]:
    def chosen(strategy: str, world: World, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        found = select(rows, len(rows) // 2, strategy, world=world, **options)
        return found.ids, found.radii

    jobs: dict[str, Callable[[World], Any]] = {
        "nearest": lambda world: nearest(rows, rows, 2, exclude_self=True, world=world),
        "greedy": partial(chosen, "greedy"),
        "threshold-decay": partial(chosen, "threshold-decay"),
    }
    if rows.dtype != np.uint8:
        jobs["whitened greedy"] = partial(chosen, "greedy", metric="whitened")
        jobs["cosine nearest"] = lambda world: nearest(rows, rows, 2, exclude_self=True, metric="cosine", world=world)
    return jobs


def speed(card: Card) -> None:
    size = card.pick(8192, 256)
    a, b = (torch.randn(size, size, device=card.device).bfloat16() for _ in range(2))
    peak = 2 * size**3 / card.seconds(lambda: a @ b, 5)
    card.row("bfloat16 product", peak / 1e12, "TFLOP/s")
    n, many = card.pick((100_000, 1_000_000), (256, 512))
    x = torch.randn(n, 384, device=card.device)
    select(x[:256], 16, world=card.world)  # the first call proves the device
    for name, tiles, chunk in (
        ("as shipped", sketch.ON_GPU, distance._GPU_CHUNK_ELEMENTS),
        ("tiles 4 x as large", 4 * sketch.ON_GPU, distance._GPU_CHUNK_ELEMENTS),
        ("chunks of 2^24", sketch.ON_GPU, 1 << 24),
        ("sizes for a CPU", 1, 1 << 16),
    ):
        if not card.has(12, f"speed with {name}"):
            continue
        kept = sketch.ON_GPU, distance._GPU_CHUNK_ELEMENTS
        _sizes(tiles, chunk)
        part = x if tiles > 1 else x[: n // 4]
        taken = card.seconds(lambda part=part: nearest(part, part, exclude_self=True, world=card.world))  # type: ignore[misc]
        card.row(f"nearest {len(part)} x {len(part)} x 384, {name}", taken, "s")
        card.row(f"the same: share of the product's speed, {name}", 2 * len(part) ** 2 * 390 / taken / peak, "of peak")
        taken = card.seconds(lambda part=part: select(part, len(part) // 2, world=card.world))  # type: ignore[misc]
        card.row(f"greedy {len(part)} -> {len(part) // 2}, {name}", taken, "s")
        _sizes(*kept)
    few = x[: n // 4]
    first, second = (select(few, n // 8, world=card.world).ids for _ in range(2))
    card.verdict(f"greedy {n // 4} -> {n // 8}: the same twice", equal(first, second))
    card.busy(f"greedy {n // 4} -> {n // 8}", lambda: select(few, n // 8, world=card.world))
    if not card.lacks("faiss", "faiss-gpu"):
        _faiss(card, x.cpu().numpy())
    if card.has(15, f"greedy {many} -> {many // 100}"):
        large = torch.randn(many, 384, device=card.device)
        taken = card.seconds(lambda: select(large, many // 100, world=card.world))
        card.row(f"greedy {many} -> {many // 100}", taken, "s")


def _sizes(tiles: int, chunk: int) -> None:
    setattr(sketch, "ON_GPU", tiles)  # noqa: B010 - constants
    setattr(bounds, "ON_GPU", tiles)  # noqa: B010
    setattr(distance, "_GPU_CHUNK_ELEMENTS", chunk)  # noqa: B010


def _faiss(card: Card, rows: np.ndarray) -> None:
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        card.row("faiss-gpu", "faiss is installed without GPU support")
        return
    taken = card.seconds(lambda: nearest(rows, rows, exclude_self=True, backend="faiss", world=card.world))
    card.row(f"nearest {len(rows)} x {len(rows)} x 384 with faiss-gpu's candidates", taken, "s")
