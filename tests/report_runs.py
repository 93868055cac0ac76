"""Small run folders for tests of the report, written with the real writers, of digits that slowly lose variety."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import yaml
from sklearn.datasets import load_digits

from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL, Provenance, seal_dataset, write_shard
from entroloop.eval.measures.generation import FeatureSets, baseline_row, evaluate_generation
from entroloop.eval.measures.row import Context, Row
from entroloop.eval.report import page
from entroloop.eval.report.arms import Arm
from entroloop.eval.report.runs import Run

HELDOUT = 100


@functools.cache
def digits():
    return (load_digits().images[:, None] * 15.9).astype(np.uint8)


def make_run(folder, strategy="random", seed=0, generations=3, n=60, *, planned=None, encoders=("pixel",), images=None):
    """A run of fake samples: each generation mixes images of a shrinking set, faster for `random`."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    config = {
        "format": 1,
        "name": folder.name,
        "seed": seed,
        "generations": planned or generations,
        "loop": {"paradigm": "replace", "candidates": 1 if strategy == "random" else 2},
        "selection": {"strategy": strategy},
        "train": {"steps": 1500},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rng = np.random.default_rng(seed)
    images = digits() if images is None else images
    real, heldout = images[:n], images[-HELDOUT:]
    training, origin = real, Provenance(np.full(n, REAL), np.arange(n), ("",) * n)
    for generation in range(generations):
        keep = max(4, int(n * (0.6 if strategy == "random" else 0.85) ** (generation + 1)))
        left, right = rng.integers(keep, size=(2, n))
        weight = rng.uniform(0.6, 1, size=(n, 1, 1, 1))
        samples = (weight * training[left] + (1 - weight) * training[right]).astype(np.uint8)
        place = folder / f"generation_{generation:04d}"
        write_set(place / "selected", training, origin)
        write_set(place / "samples", samples, Provenance.sampled(generation, 0, n))
        sets = {}
        for i, name in enumerate(encoders):
            made, trained, held = (
                x.reshape(len(x), -1).astype(np.float32)[:, i : i + 64] for x in (samples, training, heldout)
            )
            sets[name] = FeatureSets(made, trained, held, digest="0" * 64)
        row = evaluate_generation(generation, sets, origin, entropy_size=n)
        if generation == 0:
            row = row.model_copy(update={"baseline": baseline_row(sets)})
        write_row(place, row)
        phases = [{"phase": "train", "seconds": 12.5, "nfe": 1500}, {"phase": "sample", "seconds": 3.0, "nfe": 1140}]
        phases[0]["numerics"] = {"torch": "2.13.0", "threads": 1}
        phases += [{"phase": "train", "kimg": kimg, "loss": 1 / kimg + generation} for kimg in (1, 2, 4)]
        if generation:
            phases.append({"phase": "select", "seconds": 0.5, "radius_median": 100.0 + generation + seed})
        (place / "stats.jsonl").write_text("".join(json.dumps(phase) + "\n" for phase in phases))
        training, origin = samples, Provenance.sampled(generation, 0, n)
    return folder


def write_set(folder, images, provenance):
    write_shard(folder, 0, images, None, provenance, first_key=0)
    seal_dataset(folder)


def write_row(generation_folder, row):
    metrics = generation_folder / "metrics"
    metrics.mkdir()
    (metrics / "metrics.jsonl").write_bytes(row.as_json())
    manifest.seal(metrics, "metrics", 1, ["metrics.jsonl"])


def make_sweep(folder, strategies=("random", "greedy", "threshold-decay"), seeds=(0, 1), **options):
    for strategy in strategies:
        for seed in seeds:
            make_run(Path(folder) / f"{strategy}-{seed}", strategy, seed, **options)
    return Path(folder)


def make_page(folder):
    """`sweep`, two strategies with two seeds and two generations each, and its `report.html`."""
    make_sweep(folder / "sweep", ("random", "greedy"), generations=2, n=40)
    page.write([folder / "sweep"], folder / "report.html")


def synthetic(strategy="random", seed=0, distances=(1.0, 2.0, 4.0), name=None, **config):
    """A Run without a folder."""
    rows = tuple(
        Row(
            generation=g,
            measures={"pixel": {"frechet_distance": d, "generalization_score": 8 / d, "training_entropy": -d}},
            provenance={"real": 1.0} if g == 0 else {str(g - 1): 1.0},
        )
        for g, d in enumerate(distances)
    )
    settings = {"seed": seed, "generations": len(distances), "selection.strategy": strategy, **config}
    return Run(Path(), name or f"{strategy}-{seed}", settings, rows, None, ())


def with_context(row, **context):
    """The row with other facts behind its numbers."""
    return Row.model_validate({**row.as_dict(), "context": context})


def arm(*runs):
    """One arm of these runs."""
    return Arm(runs[0].strategy, runs[0].strategy, "", runs)


def paired_points(run, entropies, scores, n=64):
    """The run with these entropies, of n images each, and scores."""
    rows = [
        Row(generation=row.generation, provenance=row.provenance,
            measures={"pixel": {"training_entropy": e, "generalization_score": float(np.exp(s))}},
            context=Context.model_validate({"encoders": {"pixel": {"entropy_n": n}}}))
        for row, e, s in zip(run.rows, entropies, scores, strict=True)
    ]  # fmt: skip
    return Run(Path(), run.name, run.config, tuple(rows), None, ())
