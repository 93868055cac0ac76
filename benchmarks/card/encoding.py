"""Encoders with random weights: speed, the share of Pillow's resize, and features against the CPU's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from card.common import Card
from entroloop.data import precision
from entroloop.data.catalogue import INCEPTION_FEATURES
from entroloop.data.features import classifier, dinov2, inception
from entroloop.data.features.encoder import Encoder, load_encoder
from entroloop.data.features.inception_network import FID, network
from entroloop.data.features.weights import VARIABLE

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
DINOV2 = {"dinov2-small": (384, 12, 6), "dinov2-large": (1024, 24, 16)}  # features, layers, heads
NEEDED = {"dinov2-large": 15}  # seconds, about; of the others 5


def save_inception(card: Card) -> None:
    """Writes random weights of Inception where the encoder looks for them."""
    os.environ[VARIABLE] = str(card.folder)
    torch.manual_seed(0)
    last = {"fc.weight": torch.zeros(FID.classes, INCEPTION_FEATURES), "fc.bias": torch.zeros(FID.classes)}
    torch.save({**network(FID).state_dict(), **last}, card.folder / inception.STATES[0])


def _save_dinov2(card: Card, name: str) -> None:
    from transformers import Dinov2Config, Dinov2Model

    features, layers, heads = DINOV2[name]
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=features, num_hidden_layers=card.pick(layers, 1), num_attention_heads=heads, image_size=518,
        patch_size=dinov2.PATCH,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(card.folder / name)


def encoders(card: Card) -> None:
    card.world  # noqa: B018 - full precision from here on
    images = np.random.default_rng(0).integers(0, 256, (card.pick(2048, 2), *SHAPE), dtype=np.uint8)
    save_inception(card)
    classifier.save(card.folder / "classifier", classifier.Classifier(SHAPE, 10))
    names = ["classifier", "inception"]
    if not card.lacks("transformers", "dinov2: transformers"):
        for name in DINOV2:
            _save_dinov2(card, name)
            names.append(name)
    for name in names:
        if card.has(NEEDED.get(name, 5), name):
            some = images[: len(images) // 8] if name in NEEDED and not card.tiny else images
            _one(card, name, some, card.folder / "classifier")


def _one(card: Card, name: str, images: np.ndarray, fitted: Path) -> None:
    found = {device: load_encoder(name, SHAPE, classifier=fitted, device=device) for device in (card.device, CPU)}
    encoder = found[card.device]
    few = images[: card.pick(16, 2)]
    for batch in card.pick((64, 256), (2,)):
        _batch(encoder, batch)
        encoder(images[:batch])
        card.row(f"{name}, batch {batch}", len(images) / card.seconds(lambda: encoder(images)), "images/s")
        if name in DINOV2:  # Pillow resizes
            block = torch.from_numpy(images[:batch])
            share = card.seconds(lambda block=block: encoder._prepared(block), 3) / batch  # type: ignore[misc,attr-defined]
            card.row(f"{name}, batch {batch}: the resize alone", 1 / share, "images/s")
    card.busy(name, lambda: encoder(images))
    exact = encoder(few)
    with _tf32():
        card.row(f"{name} with TF32", len(images) / card.seconds(lambda: encoder(images)), "images/s")
        card.row(f"{name} with TF32: features against float32's, of the largest", _apart(encoder(few), exact))
    _batch(found[CPU], len(few))
    card.within(f"{name}: features against the CPU's, of the largest", _apart(exact, found[CPU](few)), 1e-4)


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1))


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    """Encoders switch TF32 off for each call. Here they do not."""
    kept = precision.full_precision
    setattr(precision, "full_precision", contextlib.nullcontext)  # noqa: B010 - a function
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        setattr(precision, "full_precision", kept)  # noqa: B010
        precision.keep_full_precision()


def _batch(encoder: Encoder, batch: int) -> None:
    if hasattr(encoder, "_batch"):
        encoder._batch = batch
