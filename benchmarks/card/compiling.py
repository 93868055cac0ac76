"""torch.compile, which takes minutes at the start: training steps, and samples of two processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from card.common import HERE, Card
from card.sampling_steps import HEUN, weights_of
from card.training_steps import data_of, rate
from entroloop.trainer.generate import Generator, SamplePlan
from entroloop.trainer.sample_config import SampleConfig

ENDING = 3.0  # seconds that are left for the rows and the end of the section
TRAINING = """
import sys
from pathlib import Path
from card.common import Card
from card.compiling import trained
results, folder, until, name, batch = sys.argv[1:]
card = Card("compiled", Path(results), Path(folder), tiny=False, pretended=False, until=float(until))
trained(card, name, int(batch))
"""
SAMPLING = """
import sys, torch
from pathlib import Path
from card.compiling import digest
print(digest(Path(sys.argv[1]), torch.device("cuda", 0)))
"""


def compiled(card: Card) -> None:
    if card.pretended:
        card.row("compiled training and sampling", "not on the pretended device")
        return
    sampling = [SAMPLING, str(weights_of(card, "edm"))]
    if (found := _ended(card, "training of cifar10", [_training(card, "cifar10", 128)])) is None:
        return
    card.verdict("training of cifar10 runs compiled", found != [""])
    if (found := _ended(card, "sampling in two processes", [sampling, sampling])) is None:
        return
    card.verdict("compiled sampling has the same bytes in two processes", bool(found[0]) and found[0] == found[1])
    if (found := _ended(card, "training of ffhq64", [_training(card, "ffhq64", 32)])) is not None:
        card.verdict("training of ffhq64 runs compiled", found != [""])


def _training(card: Card, name: str, batch: int) -> list[str]:
    return [TRAINING, *map(str, (card.results, card.folder, card.until, name, batch))]


def _ended(card: Card, what: str, programs: Sequence[Sequence[str]]) -> list[str] | None:
    """What each program printed, at once; "" for one that failed. None, with a row, if time is over before they end."""
    processes = [
        subprocess.Popen([sys.executable, "-c", *program], cwd=HERE, stdout=subprocess.PIPE, text=True)
        for program in programs
    ]
    began, found = time.monotonic(), []
    try:
        for process in processes:
            out = process.communicate(timeout=max(1.0, card.until - ENDING - time.monotonic()))[0]
            found.append("" if process.returncode else out)
    except subprocess.TimeoutExpired:
        card.row(f"left out: {what}, compiled", f"not done within {time.monotonic() - began:.0f} s")
        for process in processes:
            process.kill()
        return None
    return found


def trained(card: Card, name: str, batch: int) -> None:
    """Rows: the speed of compiled training steps, and the seconds with their compilation."""
    data = data_of(card, name)
    rate(card, name, batch, data, 20, precision="bf16", channels_last=True, compile=True)
    print("done")


def digest(weights: Path, device: torch.device) -> str:
    """The SHA-256 of samples that a compiled network draws."""
    made = Generator(weights, SampleConfig(batch=64, compile=True, **HEUN), SamplePlan(0, 0, 64, 64), device)
    return hashlib.sha256(made.samples(0, 64)[0].tobytes()).hexdigest()
