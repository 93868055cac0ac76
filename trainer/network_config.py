"""The network of a run, as a configuration section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from entroloop.data.config import HOW, Named, Section
from entroloop.data.registry import check_options
from entroloop.trainer.catalogue import NETWORKS

AUTO = "auto"

Precision = Literal["no", "fp16", "bf16"]  # of the network's calls
Attention = Literal["sdpa", "xformers"]


class NetworkConfig(Section):
    """The network's shape."""

    kind: Annotated[str, Named(NETWORKS, AUTO)] = "auto"
    """The network: `auto` is the built-in network for the kind of samples, `unet` for images and `mlp` for vectors.
    `mlp` takes small images, too, as vectors of their pixels."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of your own class."""
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 32), min_length=1)
    """UNet: channels of each level; each level has half the resolution of the previous level."""
    layers_per_block: int = Field(1, ge=1)
    """UNet: residual blocks per level."""
    attention: tuple[int, ...] = ()
    """UNet: levels with self-attention; 0 is the full resolution."""
    middle_attention: bool = True
    """UNet: self-attention at the lowest resolution."""
    attention_backend: Annotated[Attention, HOW] = "sdpa"
    """UNet: the code that computes attention. `sdpa` is torch's own; `xformers` needs that library and a GPU."""
    norm_groups: int = Field(8, ge=1)
    """UNet: groups of every group normalization; must divide the channels of every level."""
    fold: tuple[int, int, int] | None = None
    """UNet: shape [C, H, W] in which the network sees vectors as images, for example the latents of a VAE."""
    width: int = Field(128, ge=1)
    """MLP: hidden features."""
    depth: int = Field(3, ge=1)
    """MLP: residual blocks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in every residual block."""

    @model_validator(mode="after")
    def _options_are_its_own(self) -> NetworkConfig:
        if self.kind == AUTO or NETWORKS.facts(self.kind).file:
            if self.options:
                raise ValueError(f"options: are for a network of your own, {self.kind} has keys for all it takes")
        else:
            check_options(f"network {self.kind}", NETWORKS.load(self.kind), self.options, skip=2)
        return self
