"""What training can be resumed from, and what later phases read.

    state (weights, optimizer, EMA, samples seen)  <->  checkpoints/images-000000064000.pt   unsealed, the last k kept
    network with the averaged weights               ->  weights/ in diffusers form           sealed, read by sampling

A checkpoint is one file, written whole or not at all; the newest readable one wins.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from entroloop.data import files, manifest
from entroloop.data.errors import UserError
from entroloop.trainer import network as networks
from entroloop.trainer.diffusion import Objective, Scale

log = logging.getLogger(__name__)


def path_of(folder: Path, images_seen: int) -> Path:
    return folder / f"images-{images_seen:012d}.pt"


def save(folder: Path, images_seen: int, state: Mapping[str, Any], keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`. Raises UserError when the disk is full."""
    path = path_of(folder, images_seen)
    files.replace(path, lambda file: torch.save(dict(state), file))
    for old in sorted(folder.glob("images-*.pt"))[:-keep]:
        old.unlink()
    return path


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None without one. A damaged one is named and passed over."""
    for path in sorted(folder.glob("images-*.pt"), reverse=True):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            log.warning("%s: damaged checkpoint, trying the one before (%s)", path, str(error).splitlines()[0])
    return None


def restore(module: torch.nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Loads weights. Raises UserError when they belong to another network."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the checkpoint is of another network than the configuration's: {reason}") from error


def export(
    folder: Path,
    network: networks.DenoiserNetwork,
    *,
    objective: Objective,
    scale: Scale,
    num_classes: int,
    shape: tuple[int, ...],
    images_seen: int,
    made_from: Mapping[str, str],
) -> manifest.Manifest:
    """Writes the network's weights as a sealed folder that generation, and diffusers for a UNet, can load."""
    attempt = folder / f"{files.TEMPORARY}{uuid.uuid4().hex[:12]}"
    try:
        names = networks.save(network, attempt)
        for name in names:
            content = (attempt / name).read_bytes()
            files.replace(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    about = {
        "objective": objective,
        "scale": asdict(scale),
        "num_classes": num_classes,
        "shape": list(shape),
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    return manifest.seal(folder, "weights", images_seen, names, about=about, made_from=made_from)
