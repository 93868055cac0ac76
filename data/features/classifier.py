"""A small classifier whose penultimate layer is an encoder, trained once on labelled real samples, without downloads.

    labelled real samples + labels  ->  fit  ->  model  ->  save  ->  weights.safetensors + manifest (kind `classifier`)
    load(folder)  ->  model: samples -> features [N, 64] -> logits [N, K]

The features are the values before the last nonlinearity. After it a coordinate could be constant over many samples,
which would harm distances and entropy estimates.

N samples, C channels, H height, W width, D features of a vector set, K classes, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from entroloop.data import files
from entroloop.data.catalogue import CLASSIFIER_FEATURES, CLASSIFIER_SIDE
from entroloop.data.errors import UserError, reading
from entroloop.data.features import frozen
from entroloop.data.precision import full_precision
from entroloop.data.seeds import derive_seed, permutation
from entroloop.data.store import manifest
from entroloop.data.store.manifest import Manifest
from entroloop.data.store.shards import Samples

WEIGHTS = "weights.safetensors"
BATCH = 64


class Classifier(nn.Module):
    """Samples of one shape -> 64 features -> logits. `fit` trains a classifier and `load` reads a sealed one."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes
        self.body: nn.Module = _convolutions(shape) if len(shape) == 3 else _perceptron(shape[0])
        self.head = nn.Linear(CLASSIFIER_FEATURES, num_classes)
        # Mean and scale standardise vectors. Images have a fixed scale, so both buffers keep these values.
        columns = shape[0] if len(shape) == 1 else 1
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))

    def features(self, x: Tensor) -> Tensor:
        """uint8 [N, C, H, W] or float32 [N, D] -> float32 [N, 64]."""
        if len(self.shape) == 1:
            x = (x - self.mean) / self.scale
        else:
            x = x.float() / 127.5 - 1
            if max(self.shape[1:]) > CLASSIFIER_SIDE:
                x = F.adaptive_avg_pool2d(x, CLASSIFIER_SIDE)
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 [N, K]."""
        logits: Tensor = self.head(F.silu(self.features(x)))
        return logits


def _convolutions(shape: tuple[int, ...]) -> nn.Module:
    channels, side = shape[0], min(max(shape[1:]), CLASSIFIER_SIDE)
    strides = (1, 2, 1 if side < 16 else 2)
    pooled = min(4, math.ceil(min(*shape[1:], CLASSIFIER_SIDE) / 4))
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, strides[0], 1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, strides[1], 1),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, strides[2], 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(pooled),
        nn.Flatten(),
        nn.Linear(64 * pooled * pooled, CLASSIFIER_FEATURES),
    )


def _perceptron(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, CLASSIFIER_FEATURES)
    )


@full_precision()
def fit(
    samples: Samples,
    labels: NDArray[np.int64],
    num_classes: int,
    *,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> Classifier:
    """Trains a classifier: AdamW, one-cycle cosine schedule, 500 to 1,000 steps of 64 samples by the size of the set.

    samples  uint8 [N, C, H, W] or float32 [N, D]
    labels   int64 [N] in [0, K)

    On the CPU, equal arguments and thread counts give equal weights. Raises UserError when a label is out of range,
    when N = 0, or when samples and labels differ in number.
    """
    if len(samples) == 0 or len(samples) != len(labels):
        raise UserError(
            f"classifier: {len(samples)} labelled samples and {len(labels)} labels: give one label per sample"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"classifier: labels run from {labels.min()} to {labels.max()}, outside 0 … {num_classes - 1}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 0, "classifier weights"))
        model = Classifier(tuple(samples.shape[1:]), num_classes)
    if samples.ndim == 2:
        model.mean.copy_(torch.from_numpy(samples.mean(0, dtype=np.float64).astype(np.float32)))
        deviation = samples.std(0, dtype=np.float64).astype(np.float32)
        model.scale.copy_(torch.from_numpy(np.where(deviation > 0, deviation, np.float32(1))))
    model.to(device).train()
    x = torch.from_numpy(np.ascontiguousarray(samples)).to(device)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    batch = min(BATCH, len(samples))
    steps = int(np.clip(15 * len(samples) / batch, 500, 1000))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        rows = torch.from_numpy(_batch_rows(seed, step, len(samples), batch)).to(device)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def _batch_rows(seed: int, step: int, count: int, batch: int) -> NDArray[np.int64]:
    epoch, position = divmod(step, count // batch)
    order = permutation(derive_seed(seed, epoch, "classifier order"), count)
    return order[position * batch : (position + 1) * batch]


@full_precision()
def accuracy(model: nn.Module, samples: Samples, labels: NDArray[np.int64]) -> float:
    """Share of samples whose largest logit is the one of their label."""
    device = next(model.parameters()).device
    right = 0
    with torch.inference_mode():
        for start in range(0, len(samples), 256):
            x = torch.from_numpy(np.ascontiguousarray(samples[start : start + 256])).to(device)
            right += int((model(x).argmax(1).cpu().numpy() == labels[start : start + 256]).sum())
    return right / len(samples)


def save(
    folder: Path,
    model: nn.Module,
    about: Mapping[str, Any] | None = None,
    made_from: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes and seals a classifier. Equal weights give equal bytes. A folder that is already sealed does not change.

    Raises UserError when the disk is full; the folder is then not sealed.
    """
    assert isinstance(model, Classifier)
    if manifest.is_sealed(folder):
        return manifest.read(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in sorted(model.state_dict().items())}
    manifest.put(folder, WEIGHTS, safetensors.torch.save(state))
    facts = {**(about or {}), "shape": list(model.shape), "num_classes": model.num_classes, "dim": CLASSIFIER_FEATURES}
    return manifest.seal(folder, "classifier", 1, [WEIGHTS], about=facts, made_from=made_from)


def load(folder: Path) -> Classifier:
    """Reads a sealed classifier, ready for use: in eval mode, without gradients, on the CPU.

    Raises UserError, naming the folder or file, when the folder is not a sealed classifier or its weights are damaged.
    """
    sealed = manifest.read(folder)
    if sealed.kind != "classifier":
        raise UserError(f"{folder}: holds {sealed.kind}, not a classifier")
    model = Classifier(tuple(sealed.about["shape"]), int(sealed.about["num_classes"]))
    manifest.check(folder, [WEIGHTS])
    with reading(str(folder / WEIGHTS), "damaged weights"):
        model.load_state_dict(safetensors.torch.load((folder / WEIGHTS).read_bytes()))
    return model.eval().requires_grad_(False)


class ClassifierFeatures:
    """The 64 penultimate features of a sealed classifier."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, *, fitted: Path) -> None:
        self.name = "classifier"
        self.dim = CLASSIFIER_FEATURES
        self._model = load(fitted).to(device)
        self._device = device
        if self._model.shape != shape:
            raise UserError(f"{fitted}: this classifier takes samples of shape {self._model.shape}, not {shape}")
        self.weights_sha256 = {entry.name: entry.sha256 for entry in manifest.read(fitted).files}
        self.digest = files.digest({"encoder": "classifier", "version": 1, "weights": self.weights_sha256})

    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        return frozen.in_batches(
            samples, lambda x: self._model.features(x.to(self._device)), self.dim, BATCH, self._device
        )
