"""Checkpoints, from which training resumes, and exported weights, which later phases read.

    state (weights, optimizer, EMA, samples seen)  <->  checkpoints/images-000000064000.pt   unsealed, the last k kept
    network with the averaged weights               ->  weights/ in diffusers form           sealed, read by sampling

A checkpoint is one file, written whole or not at all: the output of `torch.save`, then its SHA-256 in hexadecimal.
Training resumes from the newest undamaged checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from entroloop.data import files
from entroloop.data.errors import UserError, reason
from entroloop.data.store import manifest
from entroloop.trainer import pipeline
from entroloop.trainer.diffusion import Scale
from entroloop.trainer.network import DenoiserNetwork

log = logging.getLogger(__name__)
_DIGITS = 64  # of a SHA-256


def path_of(folder: Path, images_seen: int) -> Path:
    return folder / f"images-{images_seen:012d}.pt"


def save(folder: Path, images_seen: int, state: Mapping[str, Any], keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`. Raises UserError when the disk is full.

    A checkpoint with more images seen must be damaged, because training resumed from an earlier one; it is removed too.
    """
    path = path_of(folder, images_seen)
    files.replace(path, lambda file: _write(file, state))
    there = sorted(folder.glob("images-*.pt"))
    upto = there.index(path) + 1
    for other in [*there[: max(0, upto - keep)], *there[upto:]]:
        other.unlink()
    return path


class _Hashed:
    """A file that is written from its beginning to its end, and the SHA-256 of the bytes written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def _write(file: IO[bytes], state: Mapping[str, Any]) -> None:
    hashed = _Hashed(file)
    torch.save(dict(state), hashed)  # type: ignore[arg-type]  # it only writes
    file.write(hashed.sha256.hexdigest().encode())


def read(path: Path) -> dict[str, Any]:
    """Opens a checkpoint on the CPU. Raises UserError, naming the file, when its content is not what was written.

    The file is read once, for its SHA-256. The tensors are memory maps of the file, which is in the page cache by then.
    """
    sha256, left = hashlib.sha256(), path.stat().st_size - _DIGITS
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            sha256.update(block)
            left -= len(block)
        if file.read() != sha256.hexdigest().encode():
            raise UserError(f"{path}: damaged checkpoint (SHA-256 differs)")
    # torch's own check is not enough: one wrong bit in the directory of its archive yields tensors of unset memory.
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest undamaged checkpoint, on the CPU; None if there is none. Logs a warning for each damaged one."""
    for path in sorted(folder.glob("images-*.pt"), reverse=True):
        try:
            return read(path)
        except Exception as error:
            log.warning(
                "%s; trying the one before",
                error if isinstance(error, UserError) else f"{path}: damaged checkpoint ({reason(error)})",
            )
    return None


def restore(module: torch.nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Loads whole weights by parameter name. Raises UserError when they belong to another network."""
    mine = {name: tuple(p.shape) for name, p in module.named_parameters()}
    theirs = {name: tuple(value.shape) for name, value in state.items() if name in mine}
    wrong = next((name for name, shape in mine.items() if theirs.get(name) != shape), None)
    extra = next((name for name in state if name not in mine and name not in dict(module.named_buffers())), None)
    if wrong or extra:
        name = wrong or extra
        raise UserError(
            f"{path}: these are the weights of another network than the configuration's: {name} is "
            f"{theirs.get(str(name), 'missing' if wrong else 'not in it')} there, {mine.get(str(name), 'absent')} here"
        )
    module.load_state_dict(dict(state), strict=False)


def export(
    folder: Path,
    averages: Mapping[str, DenoiserNetwork],
    *,
    objective: str,
    scale: Scale,
    num_classes: int,
    shape: tuple[int, ...],
    images_seen: int,
    made_from: Mapping[str, str],
) -> manifest.Manifest:
    """Writes averaged weights as a sealed folder that generation, and diffusers for a UNet, can load.

    diffusers loads the folder of a UNet as a pipeline (see `pipeline.py`), and its folder `unet` as a UNet2DModel.

    averages  by name; "" is the average to sample from, the others are written to sub-folders `ema_<name>`

    Raises UserError when the folder is sealed already.
    """
    manifest.check_unsealed(folder)
    names = []
    with files.temporary(folder / "weights") as attempt, files.refusals(folder, attempt):
        for average, network in averages.items():
            inner = f"ema_{average}/" if average else ""
            (attempt / inner).mkdir(parents=True, exist_ok=True)
            here = attempt / inner
            for name in [*network.save(here), *pipeline.save(here, network, objective, shape, num_classes)]:
                manifest.put(folder, inner + name, (here / name).read_bytes())
                names.append(inner + name)
    about = {
        "objective": objective,
        "scale": asdict(scale),
        "num_classes": num_classes,
        "shape": list(shape),
        "parameters": sum(p.numel() for p in averages[""].parameters()),
    }
    return manifest.seal(folder, "weights", images_seen, names, about=about, made_from=made_from)
