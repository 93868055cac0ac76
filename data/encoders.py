"""Frozen feature networks: samples in, one row of features a sample out.

    uint8 [N, C, H, W] or float32 [N, D]  ->  Encoder  ->  float32 [N, dim]

A row depends on its own sample only: networks always see batches of one fixed size, the last one padded, so that
features come out the same however the samples are cut into calls (byte for byte on the CPU at equal threads).

N samples, C channels, H height, W width, D features of a vector set, B the fixed batch.
"""

from __future__ import annotations

import difflib
import importlib
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data import classifier as classifiers
from entroloop.data import files, frozen, manifest
from entroloop.data.errors import UserError
from entroloop.data.shards import Samples

FROZEN_DIMS = {
    "inception": 2048, "inception-paper": 2048, "dinov2-small": 384, "dinov2-large": 1024, "dinov2-paper": 384,
}  # fmt: skip
NAMES = ("pixel", "classifier", *FROZEN_DIMS)
BATCH = 64
CPU = torch.device("cpu")


@runtime_checkable
class Encoder(Protocol):
    """What turns samples into features.

    name    as given in a configuration
    dim     features a row
    digest  SHA-256 that identifies weights and preprocessing: equal digests give equal features
    """

    name: str
    dim: int
    digest: str

    def __call__(self, samples: Samples) -> NDArray[np.float32]: ...


class Pixel:
    """The samples themselves: images flattened on the 0..255 scale, vectors as they are."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.name = "pixel"
        self.dim = math.prod(shape)
        self.digest = files.digest({"encoder": "pixel", "version": 1})

    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        return samples.reshape(len(samples), -1).astype(np.float32)


class ClassifierFeatures:
    """The 64 penultimate features of a sealed classifier (see `classifier.py`)."""

    def __init__(self, folder: Path, shape: tuple[int, ...], device: torch.device) -> None:
        self.name = "classifier"
        self.dim = classifiers.FEATURES
        self._model = classifiers.load(folder).to(device)
        self._device = device
        if self._model.shape != shape:
            raise UserError(f"{folder}: this classifier takes samples of shape {self._model.shape}, not {shape}")
        weights = {entry.name: entry.sha256 for entry in manifest.read(folder).files}
        self.digest = files.digest({"encoder": "classifier", "version": 1, "weights": weights})

    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        return frozen.in_batches(samples, lambda x: self._model.features(x.to(self._device)), self.dim, BATCH)


def check_name(name: str) -> None:
    """Raises UserError, with the nearest known name, unless `name` is an encoder or has the form `module:attribute`."""
    if name in NAMES or ":" in name:
        return
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(NAMES)}"
    raise UserError(f"encoder {name!r} does not exist: {hint} (your own: module:attribute)")


def load_encoder(
    name: str, shape: tuple[int, ...], *, classifier: Path | None = None, device: torch.device = CPU
) -> Encoder:
    """The encoder of that name for samples of one shape, (C, H, W) or (D,).

    classifier  the sealed folder of the classifier that was trained with the data set; None for an unlabelled set

    `module:attribute` names an Encoder, or a callable `(shape, device) -> Encoder`, of the user's own.
    Raises UserError when there is no such encoder, it does not fit the shape, its weights are missing or damaged, or
    it needs labels that do not exist.
    """
    check_name(name)
    if name == "pixel":
        return Pixel(shape)
    if name == "classifier":
        if classifier is None:
            raise UserError(
                "encoder classifier needs a labelled data set to train on, but this one has no labels: "
                "import it with labels or use the encoder pixel"
            )
        return ClassifierFeatures(classifier, shape, device)
    if name in FROZEN_DIMS:
        return _frozen(name, shape, device)
    return _own(name, shape, device)


def _frozen(name: str, shape: tuple[int, ...], device: torch.device) -> Encoder:
    from entroloop.data import dinov2, inception

    if name == "inception":
        return inception.load_inception(shape, device)
    if name == "inception-paper":
        return inception.load_paper_inception(shape, device)
    return dinov2.load_dinov2(name, shape, device)


def _own(name: str, shape: tuple[int, ...], device: torch.device) -> Encoder:
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UserError(f"encoder {name}: cannot import {module_name} ({error}): is it on PYTHONPATH?") from error
    except AttributeError as error:
        raise UserError(f"encoder {name}: module {module_name} has no {attribute!r}") from error
    if (isinstance(found, type) or not isinstance(found, Encoder)) and callable(found):
        found = found(shape, device)
    if not isinstance(found, Encoder):
        raise UserError(
            f"encoder {name}: must be, or return for (shape, device), an object with name, dim, digest and __call__"
        )
    zeros: Samples = np.zeros((2, *shape), np.uint8) if len(shape) == 3 else np.zeros((2, *shape), np.float32)
    trial: Any = found(zeros)
    if not isinstance(trial, np.ndarray) or trial.shape != (2, found.dim) or trial.dtype != np.float32:
        got = f"{trial.dtype} {list(trial.shape)}" if isinstance(trial, np.ndarray) else type(trial).__name__
        raise UserError(f"encoder {name}: for 2 samples it must return float32 [2, {found.dim}], got {got}")
    return found
