"""Slow float64 forms of the functions of `selection`, written from the definitions, and data that is hard for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def column(x: np.ndarray, point: np.ndarray) -> np.ndarray:
    distances: np.ndarray = np.sqrt(
        ((x.astype(np.float64, copy=False) - point.astype(np.float64, copy=False)) ** 2).sum(1)
    )
    return distances


def computed_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same arguments give the same arrays, which nobody may change."""
    known: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(function)
    def get(*arguments: Any) -> Any:
        key = tuple((a.tobytes(), a.shape, a.dtype) if isinstance(a, np.ndarray) else a for a in arguments)
        if key not in known:
            known[key] = function(*(a.astype(np.float64) if getattr(a, "ndim", 0) == 2 else a for a in arguments))
            for array in known[key]:
                array.setflags(write=False)
        return known[key]

    return get


@computed_once
def greedy(x: np.ndarray, size: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The published form: one distance column a pick."""
    distance = np.full(len(x), np.inf)
    ids, radii, pick = [], [], start
    for _ in range(size):
        ids.append(pick)
        radii.append(distance[pick])
        distance = np.minimum(distance, column(x, x[pick]))
        distance[ids] = -1
        pick = int(distance.argmax())
    return np.array(ids), np.array(radii)


@computed_once
def threshold_decay(
    x: np.ndarray, size: int, order: np.ndarray, threshold: float, decay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published form: one candidate a step. -> ids, radii, threshold at which each was taken."""
    distance = np.full(len(x), np.inf)
    ids: list[int] = []
    radii: list[float] = []
    taken: list[float] = []
    rest = list(order)
    while len(ids) < size:
        if ids and distance[rest].max() == 0:
            missing = size - len(ids)
            return (
                np.array(ids + rest[:missing]),
                np.array(radii + [0.0] * missing),
                np.array(taken + [-1.0] * missing),
            )
        kept = []
        for candidate in rest:
            if len(ids) < size and (not ids or distance[candidate] > threshold):
                ids.append(candidate)
                radii.append(distance[candidate])
                taken.append(threshold)
                distance = np.minimum(distance, column(x, x[candidate]))
            else:
                kept.append(candidate)
        rest = kept
        threshold *= decay
    return np.array(ids), np.array(radii), np.array(taken)


@computed_once
def nearest(queries: np.ndarray, bank: np.ndarray, k: int, exclude_self: bool) -> tuple[np.ndarray, np.ndarray]:
    distances = np.stack([column(bank, query) for query in queries])
    if exclude_self:
        np.fill_diagonal(distances, np.inf)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, ids, 1), ids


def hard_cases() -> dict[str, np.ndarray]:
    r = np.random.default_rng(1)
    centres = r.normal(size=(8, 24)) * 3
    pairs = r.normal(size=(60, 30)) * 3
    few = r.normal(size=(70, 5))
    return {
        "gaussian": r.normal(size=(200, 24)).astype(np.float32),
        "clusters": (centres[r.integers(8, size=300)] + r.normal(size=(300, 24))).astype(np.float32),
        "pixels 3072-d uint8": r.integers(0, 256, size=(80, 3072)).astype(np.uint8),
        "few grey levels, uint8": np.random.default_rng(2).integers(0, 3, size=(200, 7)).astype(np.uint8) * 127,
        "lattice, many ties": r.integers(0, 4, size=(250, 3)).astype(np.float32),
        "far from the origin": (1000 + r.normal(size=(150, 30)) * 1e-3).astype(np.float32),
        "near-duplicates": (np.concatenate([pairs, pairs + r.normal(size=pairs.shape) * 1e-4]) + 50).astype(np.float32),
        "exact duplicates": np.concatenate([few, few, few]).astype(np.float32),
        "constant": np.ones((90, 7), np.float32),
        "one dimension": r.normal(size=(200, 1)).astype(np.float32),
        "float16": r.normal(size=(150, 16)).astype(np.float16),
        "float64": r.normal(size=(150, 16)),
        "one outlier": np.concatenate([r.normal(size=(200, 8)), [[1e6] * 8]]).astype(np.float32),
        "one row": np.ones((1, 3), np.float32),
    }


def split(x: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows over 1, 2 or 3 ranks: uneven, and with three ranks one of them empty."""
    n = len(x)
    return np.split(x, {1: [], 2: [n // 3], 3: [n // 5, n // 5]}[size])


def split_with_gap(x: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows over two or more ranks, of which the second holds none."""
    first, *rest = np.array_split(x, size - 1)
    return [first, x[:0], *rest]
