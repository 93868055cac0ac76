"""Images/s of the encoders and their share of the machine's peak: `python benchmarks/encoders.py [--out FILE.json]`.

512 CIFAR-size images go through pixel, classifier and Inception, the last two with random weights. Each time is the
best of `--repeats` after a warm-up of one batch. torch counts the floating-point operations (two per multiply-add). The
peak is a float32 matrix product, timed before and after in the same process; the faster one counts. Pixel does no
arithmetic, so its line has no share. `--images 64` is a quick look; OMP_NUM_THREADS or --threads sets the threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from entroloop.data.catalogue import INCEPTION_FEATURES
from entroloop.data.features import classifier, inception
from entroloop.data.features.encoder import Encoder, load_encoder
from entroloop.data.features.inception_network import FID, network
from entroloop.data.features.weights import VARIABLE

SHAPE = (3, 32, 32)
BATCH = 64  # images counted and warmed up with: a multiple of every encoder's own batch
SIDE = 2048


@dataclass
class Line:
    """One encoder: images and seconds, floating-point operations per image, and operations per second."""

    name: str
    features: int
    images: int
    seconds: float
    images_per_second: float
    gflop_per_image: float
    gflops: float
    share_of_peak: float | None


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(device: torch.device) -> float:
    """GFLOP/s of a float32 matrix product, the best of five."""
    x, y = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    best = min(seconds(lambda: x @ y, device) for _ in range(5))
    return 2 * SIDE**3 / best / 1e9


def prepare(name: str, folder: Path, device: torch.device) -> Encoder:
    """The encoder; if it has weights, random ones are written to `folder`."""
    torch.manual_seed(0)
    if name == "classifier":
        classifier.save(folder / name, classifier.Classifier(SHAPE, 10))
    if name == "inception":
        last = {"fc.weight": torch.zeros(FID.classes, INCEPTION_FEATURES), "fc.bias": torch.zeros(FID.classes)}
        torch.save({**network(FID).state_dict(), **last}, folder / inception.STATES[0])
        os.environ[VARIABLE] = str(folder)
    return load_encoder(name, SHAPE, classifier=folder / "classifier", device=device)


def measure(encoder: Encoder, images: np.ndarray, repeats: int, device: torch.device) -> Line:
    """The line of one encoder; its share of the peak is added later."""
    with FlopCounterMode(display=False) as counter:
        encoder(np.resize(images, (BATCH, *SHAPE)))
    gflop = counter.get_total_flops() / BATCH / 1e9
    best = min(seconds(lambda: encoder(images), device) for _ in range(repeats))
    rate = len(images) / best
    return Line(encoder.name, encoder.dim, len(images), best, rate, gflop, gflop * rate, None)


def machine() -> dict[str, Any]:
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    images = np.random.default_rng(0).integers(0, 256, (options.images, *SHAPE), dtype=np.uint8)
    names = [name for name in ("pixel", "classifier", "inception") if options.only in name]
    before = peak(device)
    with tempfile.TemporaryDirectory() as folder:
        lines = [measure(prepare(name, Path(folder), device), images, options.repeats, device) for name in names]
    best = max(before, peak(device))
    about = {**machine(), "product GFLOP/s": round(best, 1)}
    print(json.dumps(about))
    print(f"{'encoder':12} {'features':>8} {'images/s':>12} {'GFLOP/image':>12} {'GFLOP/s':>10} {'of peak':>8}")
    for line in lines:
        line.share_of_peak = line.gflops / best if line.gflop_per_image else None
        share = "" if line.share_of_peak is None else f"{line.share_of_peak:.1%}"
        rates = f"{line.images_per_second:>12,.1f} {line.gflop_per_image:>12.4f} {line.gflops:>10.1f}"
        print(f"{line.name:12} {line.features:>8} {rates} {share:>8}")
    if options.out:
        options.out.write_text(json.dumps({"machine": about, "lines": [asdict(x) for x in lines]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
