"""Speed of the train phase against plain loops over the same network: one table, and JSON with `--out`.

    python benchmarks/training.py [--rounds 5] [--steps 12] [--out training.json]

Every row compares two ways, alternating round after round, in one process or in paired processes; a ratio is the median
over rounds. Images are noise of 8x8x1, since the times do not depend on the content; the network is the demo's.
With a CUDA device the rows run on it. `--channels`, `--attention`, `--side` and `--batch` set a larger network;
`--precision`, `--channels-last` and `--compile` set the training; with `--peak-tflops`, rows show the share of that
peak. `--against` adds rows of other ways to train: `--against zero2 compile xformers` (xformers is compared with
torch's own attention).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import cast

import torch
from paired import bare_steps, job_of, make_set, now, row, seconds
from torch.utils.flop_counter import FlopCounterMode

from entroloop.data.errors import UserError
from entroloop.data.store.dataset import Dataset
from entroloop.data.streams.resident import Resident
from entroloop.data.streams.streaming import Streaming
from entroloop.data.world import World, join, leave
from entroloop.trainer import ema
from entroloop.trainer.diffusion import Noise, training_loss
from entroloop.trainer.network import ImageNetwork
from entroloop.trainer.train import Trainer, train

REPEAT = 20  # updates in one measurement


class Interleaved:
    """`train` asks this after every step whether to stop. It says no, and does one bare step each time.

    pairs  (seconds of a step of `train`: data, step, averages, statistics; seconds of a bare step)
    """

    def __init__(self, bare: Trainer) -> None:
        self.bare, self.device = bare, bare.world.device
        self.pairs: list[tuple[float, float]] = []
        self.last: float | None = None

    def __call__(self) -> bool:
        start = now(self.device)
        bare_steps(self.bare, 1)
        stop = now(self.device)
        if self.last is not None:
            self.pairs.append((start - self.last, stop - start))
        self.last = now(self.device)
        return False


def phase_row(options: argparse.Namespace, folder: Path, world: World, mode: str):
    """Complete steps of `train` against bare steps, alternating.

    Work done once per phase (building the network, export) is not included.
    """
    dataset = make_set(folder / f"set-{mode}", 32 * options.batch, options.colours, options.side)
    data = Resident(dataset) if mode == "resident" else Streaming(dataset, workers=1)
    bare = Trainer(job_of(options, folder / "bare", 1), Resident(dataset), world)
    bare_steps(bare, 2)
    pairs = []
    for number in range(options.rounds):
        turns = Interleaved(bare)
        job = job_of(options, folder / f"{mode}-{number}", options.steps + 5)
        train(job, data, world, should_stop=turns)
        steady = turns.pairs[4:]  # the first ones warm up
        pairs.append((statistics.fmean(a for a, _ in steady), statistics.fmean(b for _, b in steady)))
    rates = {"images_per_s": round(options.batch / min(a for a, _ in pairs), 1)}
    if options.peak_tflops:
        rates["share_of_peak"] = round(rates["images_per_s"] * flops_of_image(bare) / 1e12 / options.peak_tflops, 3)
    return row(f"train phase, {mode} set / bare forward, backward, step", ">= 0.95", pairs, lambda a, b: b / a, **rates)


def flops_of_image(trainer: Trainer) -> float:
    """Floating-point operations of the forward and backward passes per image; matrix products and convolutions only."""
    with FlopCounterMode(display=False) as counter:
        batch = trainer.job.config.batch
        y = torch.randn(batch, *trainer.shape, device=trainer.world.device)
        noise = Noise(torch.randn_like(y), torch.rand(batch, device=y.device))
        training_loss(trainer.job.config.objective, trainer.engine.network, y, noise, None)[0].mean().backward()
    trainer.engine.optimizer.zero_grad()
    return float(counter.get_total_flops() / batch)


def ema_rows(options: argparse.Namespace, folder: Path, world: World):
    """The averages' cost as a share of a training step, and relative to the optimizer alone."""
    data = Resident(make_set(folder / "set-ema", options.batch, options.colours, options.side))
    more = {"short": {"halflife_kimg": 100}, "paper": {"rule": "power"}}
    for names, averages in ((1, {}), (3, more)):
        trainer = Trainer(job_of(options, folder / f"ema-{names}", 1, more_emas=averages), data, world)
        engine = trainer.engine
        bare_steps(trainer, 2)
        for parameter in engine.network.parameters():
            parameter.grad = torch.zeros_like(parameter)

        def update(trainer: Trainer = trainer) -> None:
            for _ in range(REPEAT):
                for name in trainer.rules:
                    ema.update(trainer.averages[name], trainer.engine.masters, 0.999)

        def optimizer(trainer: Trainer = trainer) -> None:
            for _ in range(REPEAT):
                trainer.engine.optimizer.step()

        update()
        optimizer()
        steps, averaged = [], []
        for _ in range(options.rounds):
            both = [min(seconds(f, world.device) for _ in range(3)) / REPEAT for f in (update, optimizer)]
            averaged.append((both[0], both[1]))
            steps.append((both[0], seconds(partial(bare_steps, trainer, 4), world.device) / 4))
            for parameter in engine.network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        what = f"{names} average{'s' * (names > 1)}"
        yield row(f"{what} / a training step", "<= 0.03", steps, lambda a, b: a / b)
        yield row(f"{what} + optimizer / optimizer", "(1.1)", averaged, lambda a, b: (a + b) / b)


def against_row(options: argparse.Namespace, folder: Path, world: World, name: str):
    """Whole steps of the trainer with another way of training against steps with the options alone, alternating."""
    if name == "zero2":
        ranks = torch.cuda.device_count() if world.device.type == "cuda" else 2
        speeds = [
            (rank_speed(options, ranks, "zero2"), rank_speed(options, ranks, "auto")) for _ in range(options.rounds)
        ]
        return row(
            f"images/s, ZeRO-2 / DDP, {ranks} ranks", "", speeds, lambda a, b: a / b, images_per_s=max(speeds)[0]
        )
    data = Resident(make_set(folder / f"set-{name}", options.batch, options.colours, options.side))
    changes = {"compile": name == "compile"}
    trainers = [Trainer(job_of(options, folder / name, 10**6, **c), data, world) for c in ({}, changes)]
    if name == "xformers":
        network = cast(ImageNetwork, trainers[1].engine.network)
        try:
            if not options.attention:
                raise UserError("needs --attention")
            network.use_attention("xformers", world.device)
        except UserError as error:
            return {"what": f"images/s, xformers / SDPA: {error}", "ratio": None}
    batches = [t.data.batches(seed=0, seen=0, until=10**9, batch=options.batch, rank=0, size=1) for t in trainers]

    def steps(i: int) -> float:
        return seconds(lambda: [trainers[i].step(next(batches[i])) for _ in range(options.steps)], world.device)

    steps(0), steps(1)
    pairs = [(steps(0), steps(1)) for _ in range(options.rounds)]
    rate = round(options.steps * options.batch / min(b for _, b in pairs), 1)
    what = {"compile": "compiled / not", "xformers": "xformers / SDPA"}[name]
    return row(f"images/s, {what}", "", pairs, lambda a, b: a / b, images_per_s=rate)


def rank_speed(options: argparse.Namespace, size: int, engine: str = "auto") -> float:
    """Images per second of `size` ranks of one thread with the same batch per rank, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank-of", str(size), "--folder", folder, "--steps", str(options.steps)]
        command += ["--batch", str(options.batch), "--side", str(options.side), "--colours", str(options.colours)]
        command += ["--channels", *map(str, options.channels), "--precision", options.precision, "--engine", engine]
        command += ["--attention", *map(str, options.attention)] if options.attention else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        outs = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            sys.exit(f"a rank failed: {outs}")
        return float(outs[0].split()[-1])


def one_rank(options: argparse.Namespace) -> None:
    """A process of `rank_speed`: trains steps of `batch` images per rank and prints images per second."""
    size, folder = options.rank_of, Path(options.folder)
    torch.set_num_threads(1)
    if size > 1 or options.engine != "auto":  # as torchrun sets them; ranks meet in a file: the address is not used
        os.environ |= {"RANK": str(options.rank), "LOCAL_RANK": str(options.rank), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": "29511"}
    world = join(options.rank, size, options.rank, init_method=f"file://{folder / 'meet'}")
    if world.is_main:
        make_set(folder / "set", 8 * options.batch, options.colours, options.side)
    world.barrier()
    options.batch *= size
    job = job_of(options, folder / "job", 10_000, engine=options.engine)
    trainer = Trainer(job, data := Resident(Dataset(folder / "set")), world)
    batches = data.batches(seed=0, seen=0, until=10**9, batch=options.batch, rank=world.rank, size=size)
    for _ in range(3):
        trainer.step(next(batches))
    best = 0.0
    for _ in range(options.rounds):
        world.barrier()
        spent = seconds(lambda: [trainer.step(next(batches)) for _ in range(options.steps)], world.device)
        best = max(best, options.steps * options.batch / spent)
    print(best)
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--attention", type=int, nargs="+", default=[], help="levels with self-attention")
    parser.add_argument("--against", nargs="+", choices=["zero2", "compile", "xformers"], default=[])
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--colours", type=int, default=1)
    parser.add_argument("--precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engine", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        return one_rank(options)
    torch.set_num_threads(1)
    world, rows = join(0, 1), []

    def show(found: dict[str, object]) -> None:
        rows.append(found)
        if found["ratio"] is None:
            print(found["what"], flush=True)
            return
        extra = f"  {found['images_per_s']:,} images/s" if "images_per_s" in found else ""
        spread = f"{found['lowest']:.3f} … {found['highest']:.3f}"
        print(f"{found['what']:<58} {found['ratio']:>7.3f}  {spread:<17} {found['goal']}{extra}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for mode in ("resident", "streaming"):
            show(phase_row(options, Path(folder), world, mode))
        for found in ema_rows(options, Path(folder), world):
            show(found)
        for name in options.against:
            show(against_row(options, Path(folder), world, name))
    if world.device.type == "cpu":
        pairs = [(rank_speed(options, 2), rank_speed(options, 1)) for _ in range(options.rounds)]
        show(row("2 ranks of one thread / 1 rank of one thread", ">= 1.8", pairs, lambda a, b: a / b))
    device = torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu"
    facts = {"device": device, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    if options.out:
        options.out.write_text(
            json.dumps({"machine": {**facts, "load": os.getloadavg()}, "rows": rows}, indent=2) + "\n"
        )
    print(f"{device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return None


if __name__ == "__main__":
    main()
