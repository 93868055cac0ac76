"""Sampling: speed, and the same bytes however the samples are drawn."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from card.common import Card
from card.encoding import save_inception
from card.training_steps import network_of
from entroloop.data.features.encoder import load_encoder
from entroloop.data.seeds import Part
from entroloop.trainer import checkpoint, network
from entroloop.trainer.diffusion import Scale
from entroloop.trainer.generate import Generator, SamplePlan, generate
from entroloop.trainer.sample_config import SampleConfig

HEUN: dict[str, Any] = {"sampler": "heun", "steps": 18}


def weights_of(card: Card, objective: str) -> Path:
    """Sealed weights of cifar10.yaml's network, random."""
    shape = (3, *(card.pick((32, 32), (8, 8))))
    net = network.build(network_of(card, "cifar10"), shape, 0, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    folder = card.folder / f"weights-{objective}"
    checkpoint.export(
        folder, {"": net}, objective=objective, scale=Scale.of_images(), num_classes=0, shape=shape, images_seen=0,
        made_from={},
    )  # fmt: skip
    return folder


def sampling(card: Card) -> None:
    weights = {objective: weights_of(card, objective) for objective in ("edm", "ddpm")}
    _same_bytes(card, weights["edm"])
    _beside_an_encoder(card, weights["edm"])
    for precision in ("no", "bf16", "fp16"):
        for batch in card.pick((256, 1024), (4,)):
            _rate(card, weights["edm"], batch, precision=precision, **HEUN)
    _rate(card, weights["ddpm"], card.pick(512, 4), precision="fp16", sampler="ddpm", steps=card.pick(100, 3))


def _rate(card: Card, weights: Path, batch: int, **config: Any) -> None:
    said = ", ".join([f"{config['sampler']}-{config['steps']}", f"batch {batch}", f"precision={config['precision']}"])
    made = Generator(weights, SampleConfig(batch=batch, **config), SamplePlan(0, 0, batch, batch), card.device)
    if not card.has(4, said):
        return
    made.samples(0, batch)
    taken = card.seconds(lambda: made.samples(0, batch))
    card.row(f"{said}: speed", batch / taken, "images/s")
    noise = made._noise(0, batch)
    drawn = card.seconds(lambda: noise(-1))
    steps = config["steps"] if config["sampler"] == "ddpm" else 1
    card.row(f"{said}: noise of the host, in part beside the network", steps * drawn / taken, "of the time")
    if batch == card.pick(256, 4) and config["precision"] == "fp16":
        card.busy(said, lambda: made.samples(0, batch))


def _shards(card: Card, weights: Path, name: str, part: Part, **config: Any) -> dict[str, bytes]:
    """The bytes of the shards of one part, by file name."""
    size = card.pick(64, 2)
    folder = card.folder / name
    sample = SampleConfig(batch=size, shard_size=size, **HEUN, **config)
    generate(weights, folder, sample, SamplePlan(0, 0, 4 * size, size), part, card.device, show=False)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _same_bytes(card: Card, weights: Path) -> None:
    whole = _shards(card, weights, "whole", Part())
    card.verdict("a generation drawn twice has the same bytes", whole == _shards(card, weights, "again", Part()))
    part = _shards(card, weights, "part", Part(1, 2))
    card.verdict("the shards of part 1::2 have the bytes of the whole", bool(part) and part.items() <= whole.items())


def _beside_an_encoder(card: Card, weights: Path) -> None:
    """An encoder at work in another thread must not change how the network multiplies."""
    save_inception(card)
    shape = (3, 32, 32)
    encoder = load_encoder("inception", shape, device=card.device)
    images = torch.randint(0, 256, (card.pick(64, 1), *shape), dtype=torch.uint8).numpy()
    encoder._batch = len(images)  # type: ignore[attr-defined]
    alone = _shards(card, weights, "alone", Part())
    stop, calls = threading.Event(), [0]

    def encode() -> None:
        with card.thread():
            while not stop.is_set():
                encoder(images)
                calls[0] += 1

    thread = threading.Thread(target=encode)
    thread.start()
    right, times = True, 0
    try:
        while thread.is_alive() and (times == 0 or not calls[0]):
            right = right and alone == _shards(card, weights, f"beside-{times}", Part())
            times += 1
    finally:
        stop.set()
        thread.join()
    card.row("calls of an encoder beside sampling", calls[0])
    card.verdict("the encoder did its work beside sampling", calls[0] > 0)
    card.verdict("sampling beside an encoder has the same bytes", right and times > 0)
