"""Encoders: frozen feature networks that turn each sample into one row of features.

    uint8 [N, C, H, W] or float32 [N, D]  ->  Encoder  ->  float32 [N, dim]

A row depends only on its own sample. Networks always see batches of one fixed size, the last one padded. So features do
not depend on how the samples are divided into calls (on the CPU, equal thread counts give equal bytes).

N samples, C channels, H height, W width, D features of a vector set, B the fixed batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data.catalogue import ENCODERS, EncoderFacts
from entroloop.data.errors import UserError
from entroloop.data.registry import said
from entroloop.data.store.shards import Samples

CPU = torch.device("cpu")
REQUIRED = ("dim", "digest", "__call__")
WHAT_IT_IS = f"it must be, or return for (shape, device), an object with {', '.join(REQUIRED[:-1])} and __call__"


@runtime_checkable
class Encoder(Protocol):
    """Turns samples into features.

    name    as in a configuration; a user's own encoder need not have a name
    dim     features per row
    digest  SHA-256 that identifies weights and preprocessing: equal digests mean equal features

    Optional attributes: `resize`, a few words on how it resizes images (see `resize_of`), and `weights_sha256`, the
    SHA-256 of each weights file by file name (see `weights_of`).
    """

    name: str
    dim: int
    digest: str

    def __call__(self, samples: Samples) -> NDArray[np.float32]: ...


def load_encoder(
    name: str, shape: tuple[int, ...], *, classifier: Path | None = None, device: torch.device = CPU
) -> Encoder:
    """The encoder of this name for samples of one shape, (C, H, W) or (D,).

    classifier  sealed folder of the classifier that was trained on the data set; None for an unlabelled set

    `module:attribute` names a user's own Encoder, or a callable `(shape, device) -> Encoder`.
    Raises UserError when there is no such encoder, when it does not fit the shape, when its weights are missing or
    damaged, or when it needs labels that do not exist.
    """
    if name not in ENCODERS.built_in:
        return _own(name, shape, device)
    load = ENCODERS.load(name)
    if ENCODERS.facts(name).fitted:
        if classifier is None:
            raise UserError(
                f"encoder {name} needs a labelled data set to train on, but this one has no labels: "
                "import it with labels or use the encoder pixel"
            )
        load = functools.partial(load, fitted=classifier)
    encoder: Encoder = load(shape, device)
    return encoder


def resize_of(name: str, encoder: Encoder | None = None) -> str:
    """How the encoder of this name resizes images before it computes features, in a few words.

    encoder  the loaded encoder of this name, if the caller has it. A user's own encoder gives the words in an attribute
             `resize`, or the object that `module:attribute` names does. Without such an attribute: "its own"
    """
    resize = None if name in ENCODERS.built_in else getattr(encoder, "resize", None)
    if resize is None and (encoder is None or name in ENCODERS.built_in):
        with contextlib.suppress(UserError):  # the features exist already; a missing encoder is no reason to stop now
            resize = ENCODERS.facts(name).resize
    return resize if isinstance(resize, str) else EncoderFacts.resize


def weights_of(encoder: Encoder) -> dict[str, str] | None:
    """SHA-256 of each weights file by file name, as `sha256sum` prints it; None if the encoder does not give them."""
    found = getattr(encoder, "weights_sha256", None)
    return dict(found) if isinstance(found, Mapping) else None


class Own:
    """A user's own encoder, under its name in the configuration. Checks every result of the encoder."""

    def __init__(self, name: str, encoder: Encoder) -> None:
        self.name, self.dim, self.digest = name, encoder.dim, encoder.digest
        self.resize = getattr(encoder, "resize", None)
        self.weights_sha256 = getattr(encoder, "weights_sha256", None)
        self._encoder = encoder

    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        """float32 [N, dim], from a Tensor or array of any floating-point type.

        Raises UserError, naming the encoder, when the encoder raises or returns something else.
        """
        n = len(samples)
        wanted = f"encoder {self.name}: for {n} samples it must return finite float32 [{n}, {self.dim}]"
        try:
            found: Any = self._encoder(samples)
            if isinstance(found, torch.Tensor):
                found = found.detach().cpu().float().numpy() if found.is_floating_point() else found.cpu().numpy()
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            raise UserError(f"{wanted}, raised {said(error)}") from error
        if not isinstance(found, np.ndarray) or found.shape != (n, self.dim) or found.dtype.kind != "f":
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
            raise UserError(f"{wanted}, got {got}")
        rows: NDArray[np.float32] = found.astype(np.float32, copy=False)
        if not np.isfinite(rows).all():
            row = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise UserError(f"{wanted}, row {row} holds NaN or infinity")
        return rows


def _own(name: str, shape: tuple[int, ...], device: torch.device) -> Encoder:
    found = Own(name, _made(name, shape, device))
    found(np.zeros((2, *shape), np.uint8) if len(shape) == 3 else np.zeros((2, *shape), np.float32))
    return found


def check_own(names: Iterable[str], shape: tuple[int, ...] | None, device: torch.device | None = None) -> None:
    """Imports every encoder among the names that is not built in, and tries it on two samples of this shape.

    shape   None if it is not known yet; the encoders are then only imported
    device  where they are tried; None for the CPU

    Raises UserError as `load_encoder` does.
    """
    for name in names:
        if name not in ENCODERS.built_in:
            ENCODERS.load(name) if shape is None else _own(name, shape, device or CPU)


def _made(name: str, shape: tuple[int, ...], device: torch.device) -> Encoder:
    """The encoder that `module:attribute` names or makes. An object that has a `dim` and is no class is an encoder."""
    found = ENCODERS.load(name)
    if callable(found) and (isinstance(found, type) or not hasattr(found, "dim")):
        try:
            found = found(shape, device)
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            raise UserError(
                f"encoder {name}: called with (shape, device) it raised {said(error)}: {WHAT_IT_IS}"
            ) from error
    lacking = [attribute for attribute in REQUIRED if not hasattr(found, attribute)]
    if lacking:
        raise UserError(f"encoder {name}: {type(found).__name__} lacks {', '.join(lacking)}: {WHAT_IT_IS}")
    for attribute, kind in (("dim", int), ("digest", str)):
        if not isinstance(getattr(found, attribute), kind):
            is_a = type(getattr(found, attribute)).__name__
            raise UserError(f"encoder {name}: its {attribute} is {is_a}, not {kind.__name__}: {WHAT_IT_IS}")
    made: Encoder = found
    return made
