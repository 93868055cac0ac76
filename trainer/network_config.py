"""The network of a run, as a configuration section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from entroloop.data.registry import check_options
from entroloop.trainer.catalogue import NETWORKS

AUTO = "auto"

# Of the network's calls. YAML reads a bare `no` as false.
Precision = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]


class NetworkConfig(BaseModel):
    """The network's shape.

    kind              `unet` for images, `mlp` for vectors, `auto` decides by the data, or a class of the user's own
                      (`module:attribute`), which is called with (shape, num_classes, **options)
    options           of the user's own class
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
    kind: str = "auto"
    options: dict[str, Any] = {}
    channels: tuple[int, ...] = (16, 32)
    layers_per_block: int = Field(1, ge=1)
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    norm_groups: int = Field(8, ge=1)
    fold: tuple[int, int, int] | None = None
    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        return value if value == AUTO else NETWORKS.check(value, AUTO)

    @model_validator(mode="after")
    def _options_are_its_own(self) -> NetworkConfig:
        if self.kind == AUTO or NETWORKS.facts(self.kind).file:
            if self.options:
                raise ValueError(f"options: are for a network of your own, {self.kind} has keys for all it takes")
        else:
            check_options(f"network {self.kind}", NETWORKS.load(self.kind), self.options, skip=2)
        return self

    @field_validator("channels")
    @classmethod
    def _some_channels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("give at least one level with a positive number of channels")
        return value
