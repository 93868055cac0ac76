"""One generation of a run on vectors in its parts, in CPU seconds of one thread: one table, and JSON with `--out`.

    python benchmarks/vectors.py [--rounds 5] [--points 2048] [--features 16] [--arms 4] [--out vectors.json]

Every row compares two ways in one process, alternating round after round; a ratio is the median over rounds. The
points are a Gaussian mixture.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from paired import bare_steps, row

from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.data.streams.resident import Resident
from entroloop.data.world import World, join
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets
from entroloop.trainer.diffusion import Noise, training_loss
from entroloop.trainer.network import build
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.train import Trainer, TrainJob
from entroloop.trainer.train_config import TrainConfig

STEPS = 313  # of a generation: 160 kimg in batches of 512
NETWORK = NetworkConfig(kind="mlp", width=128, depth=3)


def mixture(count: int, features: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(10, features)) * 2
    random = np.random.default_rng(seed)
    return (centres[random.integers(0, 10, count)] + random.normal(size=(count, features)) / 2).astype(np.float32)


def trainer_on(options: argparse.Namespace, folder: Path, world: World) -> Trainer:
    points = mixture(options.points, options.features, 1)
    where = Provenance(np.full(len(points), -1), np.arange(len(points)), ("",) * len(points))
    write_shard(folder / "set", 0, points, None, where, first_key=0)
    seal_dataset(folder / "set")
    config = TrainConfig(kimg=1e6, batch=options.batch, lr=3e-3)
    job = TrainJob(config, NETWORK, 0, 0, folder / "checkpoints", folder / "weights", folder / "stats", {})
    return Trainer(job, Resident(Dataset(folder / "set")), world)


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def alternating(rounds: int, one: Callable[[], object], other: Callable[[], object]) -> list[tuple[float, float]]:
    one(), other()
    return [(cpu(one), cpu(other)) for _ in range(rounds)]


def arms(options: argparse.Namespace) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward and backward passes of the networks of several arms: as one batched network, and one after another."""
    networks = [build(NETWORK, (options.features,), 0, seed) for seed in range(options.arms)]
    y = torch.from_numpy(mixture(options.batch, options.features, 2))
    noise = Noise(torch.randn_like(y), torch.rand(len(y)))
    stacked, buffers = torch.func.stack_module_state(networks)
    held = {name: x.detach().requires_grad_() for name, x in stacked.items()}

    def loss(parameters: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> torch.Tensor:
        def network(x: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            out: torch.Tensor = torch.func.functional_call(networks[0], (parameters, others), (x, condition, labels))
            return out

        return training_loss("edm", network, y, noise, None)[0].mean()

    def together() -> None:
        for _ in range(20):
            torch.func.vmap(loss, randomness="different")(held, buffers).sum().backward()

    def apart() -> None:
        for _ in range(20):
            for network in networks:
                training_loss("edm", network, y, noise, None)[0].mean().backward()

    return together, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--arms", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generated, training, heldout = (mixture(options.points, options.features, seed) for seed in (3, 1, 2))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_on(options, Path(folder), join(0, 1))
        batches = trainer.data.batches(seed=0, seen=0, until=10**9, batch=options.batch, rank=0, size=1)
        pairs = alternating(
            options.rounds,
            lambda: [trainer.step(next(batches)) for _ in range(STEPS)],
            lambda: bare_steps(trainer, STEPS),
        )
        rows.append(row(f"{STEPS} steps of training / bare steps", "", pairs, lambda a, b: a / b, seconds=pairs[-1]))
        pairs = alternating(
            options.rounds,
            lambda: measure(Sets(generated, training, heldout, entropy_size=options.points)),
            lambda: bare_steps(trainer, STEPS),
        )
        what = "all measures in one encoder / bare steps"
        rows.append(row(what, "<= 0.25", pairs, lambda a, b: a / b, seconds=pairs[-1]))
    pairs = alternating(options.rounds, *arms(options))
    what = f"{options.arms} arms as one batched network / apart"
    rows.append(row(what, "", pairs, lambda a, b: a / b, seconds=pairs[-1]))
    for found in rows:
        seconds = " and ".join(f"{value:.2f}" for value in found["seconds"])
        print(f"{found['what']:<50} {found['ratio']:>6.2f}  {seconds} s  {found['goal']}")
    if options.out:
        facts = {"torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()}
        options.out.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
