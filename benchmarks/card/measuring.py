"""Measures on the device against the same on the host: values and seconds."""

from __future__ import annotations

import numpy as np
import torch

from card.common import CPU, Card
from entroloop.eval.measures.frechet import frechet_distance, moments
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets


def measures(card: Card) -> None:
    r = np.random.default_rng(0)
    d = card.pick(2048, 16)
    sizes = card.pick((10_000, 10_000, 50_000), (60, 60, 60))
    generated, training, reference = (r.standard_normal((n, d), np.float32) for n in sizes)
    few, some = card.pick(2000, 60), card.pick(512, 16)
    _values(card, *(rows[:few, :some] for rows in (generated, training, reference)))
    _decompositions(card, training)
    for name in ("frechet_distance", "kernel_distance", "precision", "coverage"):
        if card.has(4, name):
            sets = Sets(generated, training, reference, world=card.world)
            taken = card.seconds(lambda name=name, sets=sets: measure(sets, only=[name]))  # type: ignore[misc]
            card.row(f"{name}, {sizes[0]} samples, {sizes[2]} references, {d} features", taken, "s")


def _values(card: Card, generated: np.ndarray, training: np.ndarray, reference: np.ndarray) -> None:
    """Every measure, of few rows."""
    found = {}
    for name, world in (("host", CPU), ("device", card.world)):
        sets = Sets(generated, training, reference, world=world)
        taken = card.seconds(lambda name=name, sets=sets: found.update({name: measure(sets).values}))  # type: ignore[misc]
        card.row(f"all measures of {len(generated)} samples on the {name}", taken, "s")
    for name, value in found["host"].items():
        same = bool(np.isclose(found["device"][name], value, rtol=1e-6, atol=1e-9, equal_nan=True))
        card.verdict(f"{name}: the host's value but for 1e-6", same)


def _decompositions(card: Card, rows: np.ndarray) -> None:
    """cuSOLVER against the host's LAPACK, in float64."""
    x = torch.from_numpy(rows)
    covariance = x.double().T @ x.double() / len(x)
    for name in ("cholesky", "eigvalsh", "svdvals"):
        for place in (card.device, CPU.device):
            if card.has(8, f"{name} on {place.type}"):
                matrix, work = covariance.to(place), getattr(torch.linalg, name)
                taken = card.seconds(lambda work=work, matrix=matrix: work(matrix))  # type: ignore[misc]
                card.row(f"{name}, {len(covariance)} x {len(covariance)} float64, {place.type}", taken, "s")
    half = len(x) // 2
    parts = x[:half].to(card.device), x[half:].to(card.device)
    taken = card.seconds(lambda: frechet_distance(moments(parts[0]), moments(parts[1])))
    card.row(f"moments and Fréchet distance of 2 x {half} rows", taken, "s")
