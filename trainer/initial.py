"""`train.initial_weights`: a UNet that diffusers saved -> the network from which generation 0 starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from entroloop.data import files
from entroloop.data.errors import UserError, reason
from entroloop.trainer import network
from entroloop.trainer.network import ImageNetwork
from entroloop.trainer.network_config import NetworkConfig

_ASIDE = ("dropout", "sample_size")  # of a UNet's configuration: they change no weight and not what it computes


def load(folder: Path, config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> ImageNetwork:
    """The network with the saved weights, for samples of `shape`; 0 classes for a network without labels.

    folder  holds `config.json` and the weights, as UNet2DModel.save_pretrained writes them, or a pipeline's `unet`

    Raises UserError when there is no such UNet, or when its architecture is not that of `config`.
    """
    from diffusers import UNet2DModel  # takes seconds to import

    found = unet_folder(folder)
    with torch.device("meta"):
        mine = network.build(config, shape, num_classes, 0)
    if not isinstance(mine, ImageNetwork):
        raise UserError(f"train.initial_weights={folder}: the section network makes no UNet: set network.kind=unet")
    try:
        saved = UNet2DModel.load_config(found, local_files_only=True)
        theirs = dict(UNet2DModel.from_config(saved).config) if saved.get("_class_name") == "UNet2DModel" else None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"train.initial_weights={folder}: not a UNet of diffusers ({reason(error)})") from error
    if theirs is None:
        raise UserError(f"train.initial_weights={folder}: is a {saved.get('_class_name')}: give a UNet2DModel")
    for key, value in mine.unet.config.items():
        if not key.startswith("_") and key not in _ASIDE and _plain(theirs.get(key)) != _plain(value):
            raise UserError(
                f"train.initial_weights={folder}: {key} is {_plain(theirs.get(key))} there, {_plain(value)} by the "
                "section network: change the section"
            )
    try:
        return ImageNetwork(UNet2DModel.from_pretrained(found, local_files_only=True))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"train.initial_weights={folder}: its weights cannot be read ({reason(error)})") from error


def unet_folder(folder: Path) -> Path:
    """The folder itself, or the folder `unet` of a pipeline. Raises UserError when neither holds a UNet."""
    for place in (folder, folder / "unet"):
        if (place / "config.json").is_file():
            return place
    raise UserError(f"train.initial_weights={folder}: holds no UNet (no config.json, and none in unet/)")


def digest(folder: Path) -> str:
    """Digest of the saved UNet's files, for the seal of the trained weights."""
    found = unet_folder(folder)
    names = sorted(path.name for path in found.iterdir() if path.is_file() and not path.name.startswith("."))
    return files.digest({name: files.sha256(found / name) for name in names})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
