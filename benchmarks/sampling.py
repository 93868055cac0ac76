"""Speed of sampling: the cost of the phase beyond the network, and the gain from the sampler and the ranks.

    python benchmarks/sampling.py [--rounds 5] [--images 1024] [--kimg 64] [--folder runs/benchmark-sampling]
                                  [--only phase,calls,script,ranks] [--out sampling.json]

    phase   images/s of the sample phase (noise, sampler, PNG, shards) against bare network calls, one process
    calls   network calls per image at equal Frechet distance on digits: EDM with Heun against DDPM with 1,000 steps
    script  as the paper's script samples (1,000 DDPM steps by diffusers' pipeline on one rank while the other waits)
            against Heun's shards on two ranks
    ranks   two ranks of one thread against one rank of one thread

The project's trainer first trains two models of scikit-learn's digits and keeps them in --folder. The two sides of a
ratio alternate, round after round, in the same processes. `ratio` compares the best times: on a shared machine, these
are the least disturbed ones. `median` is the median of the rounds' ratios. `cpu` compares CPU time, with two ranks that
of the busier rank: the time on a machine with one core per rank. If there is a GPU, phase and calls run on it; script
and ranks measure ranks of one thread and stay on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from timed_ranks import CPU, Ranks, Timed, row

from entroloop.data.runfolder import Layout, Step
from entroloop.data.seeds import Part, bounds
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import seal_dataset
from entroloop.data.world import World
from entroloop.eval.measures.frechet import frechet_distance, moments
from entroloop.launcher import config as configuration
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.trainer import network as networks
from entroloop.trainer.generate import SamplePlan, generate
from entroloop.trainer.sample_config import SampleConfig

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
DIGITS = Path(__file__).parent.parent / "configs" / "digits.yaml"
HEUN = SampleConfig(steps=18, shard_size=512)  # EDM's own 18 steps: 35 network calls
ANCESTRAL = SampleConfig(sampler="ddpm", steps=1000, shard_size=512)
GOAL_CALLS = 1 / 28


def timed(images: int, work: Callable[[], object]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return Timed(images, time.perf_counter() - wall, time.process_time() - cpu)


# -- models -----------------------------------------------------------------------------------------------------------


def trained(folder: Path, objective: str, kimg: float) -> Context:
    """A run on digits with generation 0 trained; reused if `folder` already has it."""
    overrides = [f"folder={folder}", f"name={objective}-{kimg:g}", f"train.objective={objective}"]
    if objective == "ddpm":  # its noise levels are fixed: no key of the digits' configuration may ask for others
        overrides.append("sample.sigma_max=80")
    config = configuration.load(DIGITS, [*overrides, f"train.kimg={kimg}", "generations=1"])
    world = World(device=DEVICE)
    runner.run(config, world, lambda: False, until=Step(0, "train"))
    return Context(config, Layout(config.run_folder), world)


def weights_of(work: Context) -> Path:
    return work.layout.of(Step(0, "train"))


# -- phase against bare calls -----------------------------------------------------------------------------------------


def phase_rows(work: Context, images: int, rounds: int, scratch: Path) -> list[dict[str, Any]]:
    """The digits' network, and an untrained one for 32 x 32 x 3."""
    from entroloop.trainer import checkpoint
    from entroloop.trainer.diffusion import Scale
    from entroloop.trainer.network_config import NetworkConfig

    shape, config = (3, 32, 32), NetworkConfig(channels=(32, 64))
    larger = scratch / "larger"
    checkpoint.export(
        larger, {"": networks.build(config, shape, 0, 0)}, objective="edm", scale=Scale(True, (127.5,), (127.5,)),
        num_classes=0, shape=shape, images_seen=0, made_from={},
    )  # fmt: skip
    cases = [("digits 8x8, 2 shards", weights_of(work), images, 256), ("32x32x3, 2 shards", larger, 64, 32)]
    return [phase_row(*case, rounds, scratch) for case in cases]


def phase_row(name: str, weights: Path, images: int, batch: int, rounds: int, scratch: Path) -> dict[str, Any]:
    config = HEUN.model_copy(update={"batch": batch, "shard_size": images // 2})
    plan = SamplePlan(0, 0, images, config.shard_size)
    network = networks.load(weights).requires_grad_(False).to(DEVICE)
    shape = json.loads((weights / "manifest.json").read_text())["about"]["shape"]
    x, condition = torch.randn(batch, *shape, device=DEVICE), torch.randn(batch, device=DEVICE)

    def ours() -> None:
        shutil.rmtree(scratch / "phase", ignore_errors=True)
        generate(weights, scratch / "phase", config, plan, Part(), DEVICE, show=False)

    @torch.no_grad()
    def plain() -> None:
        for start, stop in plan.shards:
            for first, last in bounds(start, stop, batch):
                for _ in range(config.nfe):
                    network(x[: last - first], condition[: last - first], None)

    plain()
    times = [(timed(images, ours), timed(images, plain)) for _ in range(rounds)]
    return row(f"sample phase / bare network calls, {name}", 0.95, [t[0] for t in times], [t[1] for t in times])


# -- network calls at equal Frechet distance --------------------------------------------------------------------------


def drawn(work: Context, config: SampleConfig, images: int, name: str) -> np.ndarray:
    """Samples of a trained run, kept beside it: uint8 [N, 1, 8, 8]."""
    folder = work.layout.run / "benchmark" / name
    plan = SamplePlan(1, 0, images, config.shard_size)
    generate(weights_of(work), folder, config, plan, Part(), DEVICE, show=False)
    seal_dataset(folder)
    return Dataset(folder).all()


def distances(work: Context, samples: np.ndarray) -> dict[str, list[float]]:
    """Frechet distance to all real images not used for training, per feature space: [all, first half, second half]."""
    split = work.split
    rows = np.concatenate([split.heldout, split.fresh])
    found = {}
    for name, encoder in work.encoders.items():
        real = moments(torch.from_numpy(work.features(-1, name)[rows]))
        features = torch.from_numpy(encoder(samples))
        half = len(features) // 2
        parts = (features, features[:half], features[half:])
        found[name] = [round(float(frechet_distance(moments(part), real)), 4) for part in parts]
    return found


def calls_row(edm: Context, ddpm: Context, images: int) -> dict[str, Any]:
    """The fewest Heun steps whose distance, for equally many samples, is at most DDPM's in every feature space."""
    target = distances(ddpm, drawn(ddpm, ANCESTRAL, images, f"ddpm-1000-{images}"))
    curve: dict[int, dict[str, list[float]]] = {}
    for steps in (18, 14, 11, 9, 7, 6, 5, 4, 3, 2):
        config = HEUN.model_copy(update={"steps": steps, "sigma_max": 80.0})
        curve[config.nfe] = distances(edm, drawn(edm, config, images, f"heun-{steps}-{images}"))
    equal = [nfe for nfe, found in curve.items() if all(found[name][0] <= target[name][0] for name in target)]
    own = {
        nfe: distances(
            ddpm, drawn(ddpm, HEUN.model_copy(update={"steps": (nfe + 1) // 2}), images, f"heun-{nfe}-own-{images}")
        )
        for nfe in (35, 99)
    }
    return {
        "what": "network calls per image, EDM with Heun / DDPM with 1,000 steps, at equal Frechet distance",
        "calls": min(equal) if equal else None,
        "ratio": round(min(equal) / 1000, 5) if equal else None,
        "goal": round(GOAL_CALLS, 5),
        "images": images,
        "ddpm_1000": target,
        "edm_heun_by_calls": curve,
        "ddpm_network_with_heun_by_calls": own,
    }


# -- ranks ------------------------------------------------------------------------------------------------------------


def sharded(world: World, weights: Path, folder: Path, config: SampleConfig, plan: SamplePlan) -> None:
    """The sample phase as the loop runs it."""
    mine = Part().split(world.rank, world.size)
    generate(weights, folder, config, plan, mine, CPU, whole=Part(), show=False)


def alone(world: World, weights: Path, folder: Path, config: SampleConfig, plan: SamplePlan) -> None:
    """The same on rank 0 alone; rank 1 waits without using its core."""
    if world.is_main:
        generate(weights, folder, config, plan, Part(), CPU, show=False)


def pipeline(world: World, weights: Path, images: int) -> None:
    """Sampling as in the paper's script: diffusers' DDPM pipeline in the main process."""
    if world.is_main:
        unet = networks.load(weights).unet
        run = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000))
        run.set_progress_bar_config(disable=True)
        run(batch_size=images, num_inference_steps=1000, output_type="np")


def ranks_row(ranks: Ranks, edm: Context, images: int, rounds: int, scratch: Path) -> dict[str, Any]:
    plan = SamplePlan(0, 0, images, images // 4)
    times: dict[Any, list[Timed]] = {sharded: [], alone: []}
    for number in range(rounds + 1):
        for function, found in times.items():
            folder = scratch / f"{function.__name__}-{number}"
            found.append(ranks.timed(images, function, weights_of(edm), folder, HEUN, plan))
    # The first round warms the processes up.
    name = "2 ranks of one thread / 1 rank of one thread, Heun's 35 calls, 4 shards"
    return row(name, 1.8, times[sharded][1:], times[alone][1:])


def script_rows(
    ranks: Ranks, edm: Context, ddpm: Context, images: int, rounds: int, scratch: Path
) -> list[dict[str, Any]]:
    """With EDM's own 18 steps, and with 9 steps, which reach DDPM's Frechet distance according to `calls`."""
    plan, few = SamplePlan(0, 0, images, images // 4), 128
    ours: dict[int, list[Timed]] = {18: [], 9: []}
    plain = []
    for number in range(rounds):
        for steps, found in ours.items():
            folder, config = scratch / f"script-{steps}-{number}", HEUN.model_copy(update={"steps": steps})
            found.append(ranks.timed(images, sharded, weights_of(edm), folder, config, plan))
        plain.append(ranks.timed(few, pipeline, weights_of(ddpm), few))
    name = "Heun's shards, {} calls, on 2 ranks / DDPM pipeline of 1,000 on one, the other waiting"
    return [row(name.format(2 * steps - 1), 50, found, plain) for steps, found in ours.items()]


def show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'what':<92} {'ours/s':>9} {'plain/s':>9} {'ratio':>8} {'median':>8} {'cpu':>8}  goal")
    for found in rows:
        if "ours_per_s" in found:
            rates = f"{found['ours_per_s']:>9,.1f} {found['plain_per_s']:>9,.2f} {found['ratio']:>8.3f}"
            print(f"{found['what']:<92} {rates} {found['median']:>8.3f} {found['cpu']:>8.3f}  >= {found['goal']}")
        else:
            calls = f"{found['calls']!s:>9} {1000:>9} {found['ratio']!s:>8}"
            print(f"{found['what']:<92} {calls} {'':>17}  <= {found['goal']}")
            print(f"  of {found['images']} samples, [all, first half, second half]; DDPM: {found['ddpm_1000']}")
            for nfe, distance in found["edm_heun_by_calls"].items():
                print(f"    EDM, Heun, {nfe:>3} calls: {distance}")
            for nfe, distance in found["ddpm_network_with_heun_by_calls"].items():
                print(f"    the DDPM network, Heun, {nfe:>3} calls: {distance}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--kimg", type=float, default=64.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-sampling"))
    parser.add_argument("--only", default="phase,calls,script,ranks")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    only, rows = options.only.split(","), []
    edm, ddpm = (trained(options.folder, objective, options.kimg) for objective in ("edm", "ddpm"))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if "phase" in only:
            rows += phase_rows(edm, options.images, options.rounds, scratch)
        if "calls" in only:
            rows.append(calls_row(edm, ddpm, options.images))
        if "script" in only or "ranks" in only:
            with Ranks() as ranks:
                if "script" in only:
                    rows += script_rows(ranks, edm, ddpm, options.images, min(3, options.rounds), scratch)
                if "ranks" in only:
                    rows.append(ranks_row(ranks, edm, options.images, options.rounds, scratch))
    show(rows)
    facts = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg(),
        "kimg": options.kimg,
    }
    if options.out:
        options.out.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")
    print(f"{facts['cores']} cores, load {facts['load'][0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
