"""The denoiser's network: diffusers' UNet2DModel for images, a residual MLP for plain vectors.

Both are called as network(x, condition, labels) with x [B, ...], a noise condition [B] and labels int64 [B] or None,
and return a tensor like x. Class `num_classes` stands for "no class" (classifier-free guidance).
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import UNet2DModel
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entroloop.data.errors import UserError
from entroloop.data.store import manifest

log = logging.getLogger(__name__)

# Of the network's calls. YAML reads a bare `no` as false.
Precision = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]


class NetworkConfig(BaseModel):
    """The network's shape.

    kind              `unet` for images, `mlp` for vectors, `auto` decides by the data
    channels          UNet: channels of each level, each level half the resolution of the one before
    layers_per_block  UNet: residual blocks a level
    attention         UNet: levels (0 = full resolution) with self-attention
    middle_attention  UNet: self-attention at the lowest resolution
    norm_groups       UNet: groups of every group normalization; must divide every level's channels
    fold              UNet: vectors are seen as images of this shape [C, H, W], for example a VAE's latents
    width, depth      MLP: hidden features and residual blocks
    dropout           in every residual block
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["auto", "unet", "mlp"] = "auto"
    channels: tuple[int, ...] = (16, 32)
    layers_per_block: int = Field(1, ge=1)
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    norm_groups: int = Field(8, ge=1)
    fold: tuple[int, int, int] | None = None
    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("channels")
    @classmethod
    def _some_channels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("give at least one level with a positive number of channels")
        return value


class ImageNetwork(nn.Module):
    """diffusers' UNet2DModel behind the call that the rest of the trainer uses. Vectors are folded into its images."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None) -> Tensor:
        size = self.unet.config.sample_size
        image = x.reshape(-1, self.unet.config.in_channels, size, size) if x.ndim == 2 else x
        out: Tensor = self.unet(image, condition, class_labels=labels, return_dict=False)[0]
        return out.reshape(x.shape)


class VectorNetwork(nn.Module):
    """A residual MLP conditioned on the noise level by random Fourier features: [B, D] -> [B, D]."""

    def __init__(self, features: int, num_classes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.config = {
            "features": features,
            "num_classes": num_classes,
            "width": width,
            "depth": depth,
            "dropout": dropout,
        }
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(32))
        self.enter = nn.Linear(features, width)
        self.condition = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features))

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None) -> Tensor:
        phase = condition.to(x.dtype)[:, None] * self.frequencies * 6.2832
        c = self.condition(torch.cat([phase.sin(), phase.cos()], 1))
        if self.label is not None and labels is not None:
            c = c + self.label(labels)
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h + c)
        out: Tensor = self.leave(h)
        return out


DenoiserNetwork = ImageNetwork | VectorNetwork


def build(config: NetworkConfig, shape: tuple[int, ...], num_classes: int, seed: int) -> DenoiserNetwork:
    """A network with weights drawn from `seed`, for samples of `shape` ((C, H, W) or (D,)); 0 classes: unconditional.

    Raises UserError, naming the key, when the configuration does not fit the shape.
    """
    if config.fold is not None:
        shape = _folded(config, shape)
    vectors = len(shape) == 1
    if (config.kind == "unet" and vectors) or (config.kind == "mlp" and not vectors):
        right = "mlp" if vectors else "unet"
        raise UserError(f"network.kind={config.kind}: samples of shape {list(shape)} need {right} (or auto)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if vectors:
            return VectorNetwork(shape[0], num_classes, config.width, config.depth, config.dropout)
        return ImageNetwork(_unet(config, shape, num_classes))


def _folded(config: NetworkConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the UNet sees of vectors. Raises UserError when `fold` does not fit them."""
    assert config.fold is not None
    c, h, w = config.fold
    if shape != (c * h * w,) or h != w:
        raise UserError(
            f"network.fold={list(config.fold)}: needs vectors of {c * h * w} features and equal sides, "
            f"not samples of shape {list(shape)}"
        )
    return config.fold


def check_precision(section: str, precision: Precision, device: torch.device) -> None:
    """Raises UserError, naming `section`.precision, where the device cannot call a network in that precision."""
    if precision == "fp16" and device.type == "cpu":
        raise UserError(f"{section}.precision=fp16: a CPU computes no network in fp16; use no or bf16")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{section}.precision=bf16: this GPU has no bf16; use fp16 or no")


def use_best_attention(network: DenoiserNetwork, device: torch.device) -> str:
    """Switches a UNet's attention to xformers where it is installed and runs on `device`; returns which one is used."""
    if not isinstance(network, ImageNetwork):
        return "none"
    if device.type == "cuda" and importlib.util.find_spec("xformers") is not None:
        try:
            network.unet.enable_xformers_memory_efficient_attention()
            return "xformers"
        except (ModuleNotFoundError, ValueError, RuntimeError, NotImplementedError) as error:
            log.warning("xformers does not run here, torch's attention is used: %s", str(error).splitlines()[0])
    return "SDPA"


def _unet(config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> UNet2DModel:
    levels = len(config.channels)
    size = shape[-1]
    if size % 2 ** (levels - 1):
        raise UserError(
            f"network.channels: {levels} levels need a resolution divisible by {2 ** (levels - 1)}, not {size}"
        )
    if any(c % config.norm_groups for c in config.channels):
        raise UserError(f"network.norm_groups={config.norm_groups} must divide every one of network.channels")
    wrong = [level for level in config.attention if not 0 <= level < levels]
    if wrong:
        raise UserError(f"network.attention: level {wrong[0]} is not one of 0 … {levels - 1}")
    attention = [level in config.attention for level in range(levels)]
    return UNet2DModel(
        sample_size=size,
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        add_attention=config.middle_attention,
        dropout=config.dropout,
        num_class_embeds=num_classes + 1 if num_classes else None,
    )


FILES = {  # of an exported network
    "unet": ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"],
    "mlp": ["mlp.json", "mlp.safetensors"],
}


def save(network: DenoiserNetwork, folder: Path) -> list[str]:
    """Writes the network in safetensors; an ImageNetwork in the form of diffusers' `from_pretrained`.

    Returns the names of the files, relative to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, ImageNetwork):
        network.unet.save_pretrained(folder / "unet")
        return FILES["unet"]
    save_file(network.state_dict(), folder / "mlp.safetensors")
    (folder / "mlp.json").write_text(json.dumps(network.config, sort_keys=True) + "\n")
    return FILES["mlp"]


def load(folder: Path, average: str = "") -> DenoiserNetwork:
    """The network of a sealed folder of weights, in evaluation mode.

    average  name of one of `train.more_emas`; "" for the network that is sampled from

    Raises UserError, naming the folder or file, when there is no such network or a file is not what was sealed.
    """
    sealed = manifest.read(folder)
    inner = f"ema_{average}/" if average else ""
    names = next(
        (files for files in FILES.values() if {inner + name for name in files} <= {e.name for e in sealed.files}), None
    )
    if sealed.kind != "weights" or names is None:
        raise UserError(f"{folder / inner}: holds no exported network: give a folder of weights that a run sealed")
    manifest.check(folder, [inner + name for name in names])
    if names == FILES["unet"]:
        return ImageNetwork(UNet2DModel.from_pretrained(folder / inner / "unet", local_files_only=True)).eval()
    config: dict[str, Any] = json.loads((folder / inner / "mlp.json").read_text())
    network = VectorNetwork(**config)
    network.load_state_dict(load_file(folder / inner / "mlp.safetensors"))
    return network.eval()
