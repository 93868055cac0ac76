"""DeepSpeed's ZeRO on one GPU, a world of one over NCCL, and two ranks over gloo that share the GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from card.common import HERE, Card
from card.training_steps import data_of, job_of, network_of
from entroloop.data.streams.resident import Resident
from entroloop.data.world import World
from entroloop.selection import select
from entroloop.trainer import network
from entroloop.trainer.train import Trainer

TORCHRUN = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29517",
}  # fmt: skip


ON_THE_CPU = """
import math, sys
from pathlib import Path
from card.common import Card
from card.engines import zero
zero(Card("engines", Path(sys.argv[1]), Path(sys.argv[2]), tiny=True, pretended=True, until=math.inf))
"""


def engines(card: Card) -> None:
    _two_ranks(card)
    _one_rank(card)
    if card.lacks("deepspeed"):
        return
    if card.pretended:  # DeepSpeed does not know that device
        command = [sys.executable, "-c", ON_THE_CPU, str(card.results), str(card.folder)]
        subprocess.run(command, env=card.on_cpu(), cwd=HERE, check=True)
    else:
        zero(card)


def zero(card: Card) -> None:
    """ZeRO 1 to 3 on the GPU, or on the CPU where the GPU is pretended."""
    world = World() if card.pretended else card.world
    began = time.monotonic()
    importlib.import_module("deepspeed")
    card.row("import of deepspeed", time.monotonic() - began, "s")
    data = data_of(card, "cifar10")
    for precision in card.pick(("bf16", "fp16"), ("bf16",)):
        for stage in (1, 2, 3):
            if card.has(8, f"zero{stage} in {precision}"):
                _zero(card, data, world, stage, precision)


def _one_rank(card: Card) -> None:
    """A process group of this process alone. Its exchanges are torch's own, since a World of one needs none."""
    backend = "gloo" if card.pretended else "nccl"
    began = time.monotonic()
    dist.init_process_group(
        backend, f"file://{card.folder}/one", world_size=1, rank=0, device_id=None if card.pretended else card.device
    )
    x = torch.arange(4.0, device=card.device)
    dist.all_reduce(x)
    dist.barrier()
    objects: list[Any] = [None]
    dist.all_gather_object(objects, {"rank": 0})
    right = x.tolist() == [0, 1, 2, 3] and objects == [{"rank": 0}]
    dist.destroy_process_group()
    card.row(f"a group of one rank over {backend}", time.monotonic() - began, "s")
    card.verdict(f"sums, barriers and objects pass through {backend}", right)


def _two_ranks(card: Card) -> None:
    """Selection by two ranks on this GPU. NCCL refuses two ranks on one GPU; gloo sends tensors of a GPU in sums and
    gatherings only, so neighbours, which pass rows round a ring, are compared on the pretended device alone."""
    rows = np.random.default_rng(0).standard_normal((card.pick(4096, 90), 8)).astype(np.float32)
    np.save(card.folder / "rows.npy", rows)
    command = [sys.executable, str(HERE.parent / "tests" / "pretended" / "two_ranks.py")]
    ranks = [subprocess.Popen([*command, str(rank), str(card.folder)]) for rank in range(2)]
    if not _end_well(ranks, 600 if card.pretended else 40):
        card.row("two ranks on one GPU over gloo", "did not work")  # no run asks for it
        return
    found = [json.loads((card.folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    for name in ("greedy", "threshold-decay"):
        alone = select(rows, len(rows) // 2, name).ids.tolist()
        card.verdict(f"{name} by two ranks: ids are those of one CPU", all(one[name] == alone for one in found))


def _end_well(ranks: list[subprocess.Popen[bytes]], seconds: float) -> bool:
    """Whether all processes end with status 0 in time. Otherwise none is left: a rank waits for one that failed."""
    deadline = time.monotonic() + seconds
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    well = all(rank.poll() == 0 for rank in ranks)
    for rank in ranks:
        rank.kill()
        rank.wait()
    return well


def _zero(card: Card, data: Resident, world: World, stage: int, precision: str) -> None:
    """Trains and saves by ZeRO, resumes by one plain process, then by ZeRO again; the exports must be equal."""
    batch, count = card.pick(128, 8), card.pick(30, 2)
    name = f"zero{stage} in {precision}"
    make = partial(_trainer, card, data, world, batch, f"zero{stage}-{precision}", precision)
    first = make(f"zero{stage}")
    batches = data.batches(seed=0, seen=0, until=10**9, batch=batch)
    first.step(next(batches))
    began = time.perf_counter()
    losses = [float(first.step(next(batches))[0].mean()) for _ in range(count - 1)]
    card.row(f"{name}: one step", 1e3 * (time.perf_counter() - began) / max(1, count - 1), "ms")
    card.verdict(f"{name}: losses are finite", bool(np.isfinite(losses).all()))
    first.save()
    first.saver.settle()
    weights = {"zero": _exported(card, first, f"{name}-first")}
    plain = make("single")
    plain.save()
    plain.saver.settle()
    weights["single"] = _exported(card, plain, f"{name}-single")
    again = make(f"zero{stage}")
    weights["zero again"] = _exported(card, again, f"{name}-again")
    for other in ("single", "zero again"):
        off = float((weights["zero"] - weights[other]).abs().max())
        card.within(f"{name}: its export, and that of a resume by {other}: largest difference", off, 1e-5)


def _trainer(
    card: Card, data: Resident, world: World, batch: int, folder: str, precision: str, engine: str
) -> Trainer:  # fmt: skip
    from accelerate.state import PartialState

    PartialState._reset_state()  # accelerate keeps the launch of its first use, also in variables
    for key in [key for key in os.environ if key in TORCHRUN or key.startswith("ACCELERATE_")]:
        del os.environ[key]
    os.environ |= {} if engine == "single" else TORCHRUN
    job = job_of(card, network_of(card, "cifar10"), batch, folder, precision=precision, engine=engine)
    return Trainer(job, data, world)


def _exported(card: Card, trainer: Trainer, name: str) -> torch.Tensor:
    """The averaged weights as they are exported, in one row."""
    folder: Path = card.folder / f"export-{name.replace(' ', '-')}"
    trainer.job.weights = folder
    trainer.export()
    found = torch.cat([p.flatten() for p in network.load(folder).parameters()])
    trainer.engine.close()
    return found
