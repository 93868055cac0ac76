"""Weights of pretrained feature networks: finds their files, reads them and checks that they fit the network.

    file name  ->  find  ->  path  ->  read_state, fit  ->  tensors by name

Weights files keep their published names. They are in the folder that the environment variable ENTROLOOP_WEIGHTS names,
or else in ~/.cache/entroloop/weights. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from entroloop.data.errors import UserError, reading
from entroloop.data.paths import at_home

VARIABLE = "ENTROLOOP_WEIGHTS"
MAX_KEYS = 3  # number of wrong names that a message shows


def weights_folder() -> Path:
    """The folder of the weights. Raises UserError when the variable names a file."""
    folder = at_home(os.environ.get(VARIABLE) or "~/.cache/entroloop/weights")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{VARIABLE}={folder}: is not a folder: name the folder that contains the weights")
    return folder


def find(encoder: str, names: Sequence[str], published: str) -> Path:
    """The path of the first of these files that exists in the weights folder.

    Raises UserError, naming the files, the folder and the address of the files, when none exists.
    """
    folder = weights_folder()
    for name in names:
        if (folder / name).exists():
            return folder / name
    choices = " or ".join(names)
    raise UserError(
        f"encoder {encoder}: no weights: put {choices} into {folder} (or name its folder in {VARIABLE}); "
        f"published at {published}"
    )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a PyTorch state dict, on the CPU. Raises UserError, naming the file, when it is not a state dict."""
    with reading(str(path), "cannot be read as a PyTorch state dict"):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: is not a PyTorch state dict: it must map names to tensors")
    return dict(state)


def fit(state: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]], path: Path, network: str) -> None:
    """Raises UserError, naming the file, unless the state holds exactly these names and shapes."""
    missing = sorted(shapes.keys() - state.keys())
    unknown = sorted(state.keys() - shapes.keys())
    wrong = [
        f"{name} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    faults = [("lacks", missing), ("has unknown", unknown), ("has other shapes:", wrong)]
    found = [f"{word} {some(keys)}" for word, keys in faults if keys]
    if found:
        raise UserError(f"{path}: does not hold weights of {network}: {'; '.join(found)}")


def some(keys: Sequence[str]) -> str:
    """The first of these names, and the number of further names."""
    more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
    return ", ".join(keys[:MAX_KEYS]) + more
