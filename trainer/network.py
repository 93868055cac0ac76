"""The denoiser's network: diffusers' UNet2DModel for images, a residual MLP for vectors, or the user's own class.

All are called as network(x, condition, labels) with x [B, ...], a noise condition [B] and labels int64 [B] or None,
and return a tensor like x. The label `num_classes` means "no class" (classifier-free guidance).
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from entroloop.data.errors import UserError, reason
from entroloop.data.registry import said
from entroloop.data.store import manifest
from entroloop.trainer.catalogue import NETWORKS
from entroloop.trainer.network_config import Attention, NetworkConfig, Precision
from entroloop.trainer.network_size import FREQUENCIES, HEAD, check_unet, fitted

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class DenoiserNetwork(nn.Module):
    """The methods of a network that the trainer uses besides the call.

    images  whether the network computes on images [B, C, H, W], for which `train.channels_last` can be faster
    """

    images = False

    @classmethod
    @abstractmethod
    def make(cls, config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> Self:
        """A network with random weights, for samples of `shape`; 0 classes make it unconditional.

        Raises UserError, naming the key, when the configuration does not fit the shape.
        """

    @abstractmethod
    def save(self, folder: Path) -> list[str]:
        """Writes the network into a folder that exists. Returns the names of the files, relative to it."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """The network that `save` wrote."""

    def use_attention(self, backend: Attention, device: torch.device) -> str:
        """Computes attention by that code from now on. Returns the code's name, or `none` if there is no choice.

        Raises UserError as `check_attention` does.
        """
        return "none"


class ImageNetwork(DenoiserNetwork):
    """diffusers' UNet2DModel behind the call that the rest of the trainer uses. Vectors are folded into images.

    `save` writes the form that diffusers' `from_pretrained` reads.
    """

    images = True

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None) -> Tensor:
        size = self.unet.config.sample_size
        image = x.reshape(-1, self.unet.config.in_channels, size, size) if x.ndim == 2 else x
        out: Tensor = self.unet(image, condition, class_labels=labels, return_dict=False)[0]
        return out.reshape(x.shape)

    @classmethod
    def make(cls, config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> ImageNetwork:
        from diffusers import UNet2DModel  # takes seconds to import

        check_unet(config, shape)
        attention = [level in config.attention for level in range(len(config.channels))]
        unet = UNet2DModel(
            sample_size=shape[-1],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            add_attention=config.middle_attention,
            attention_head_dim=HEAD,
            dropout=config.dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        return cls(unet)

    def save(self, folder: Path) -> list[str]:
        self.unet.save_pretrained(folder / "unet")
        return ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]

    @classmethod
    def load(cls, folder: Path) -> ImageNetwork:
        from diffusers import UNet2DModel

        return cls(UNet2DModel.from_pretrained(folder / "unet", local_files_only=True))

    def use_attention(self, backend: Attention, device: torch.device) -> str:
        check_attention(backend, device)
        if backend == "xformers":
            self.unet.enable_xformers_memory_efficient_attention()
        return backend


class VectorNetwork(DenoiserNetwork):
    """A residual MLP conditioned on the noise level by random Fourier features: [B, D] -> [B, D].

    Small images [B, C, H, W] are seen as vectors of C H W features.
    """

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
        self.register_buffer("frequencies", torch.randn(FREQUENCIES))
        self.enter = nn.Linear(features, width)
        self.condition = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features))

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None) -> Tensor:
        phase = condition.to(self.frequencies.dtype)[:, None] * self.frequencies * 6.2832
        c = self.condition(torch.cat([phase.sin(), phase.cos()], 1).to(x.dtype))
        if self.label is not None and labels is not None:
            c = c + self.label(labels)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = h + block(h + c)
        out: Tensor = self.leave(h)
        return out.reshape(x.shape)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """Moves or converts the network, as `to` and `half` do. The frequencies keep their format: in a short one,
        phases would be off by tenths of a radian."""
        exact = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.frequencies = exact.to(self.frequencies.device)
        return self

    @classmethod
    def make(cls, config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> VectorNetwork:
        return cls(math.prod(shape), num_classes, config.width, config.depth, config.dropout)

    def save(self, folder: Path) -> list[str]:
        save_file(self.state_dict(), folder / "mlp.safetensors")
        (folder / "mlp.json").write_text(json.dumps(self.config, sort_keys=True) + "\n")
        return ["mlp.json", "mlp.safetensors"]

    @classmethod
    def load(cls, folder: Path) -> VectorNetwork:
        network = cls(**json.loads((folder / "mlp.json").read_text()))
        network.load_state_dict(load_file(folder / "mlp.safetensors"))
        return network


class OwnNetwork(DenoiserNetwork):
    """Wraps a user's class of modules, found by name and called with (shape, num_classes, **options)."""

    FILE = "network.json"

    def __init__(self, kind: str, shape: tuple[int, ...], num_classes: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.about = {"kind": kind, "shape": list(shape), "num_classes": num_classes, "options": options}
        try:
            self.net: nn.Module = NETWORKS.load(kind)(shape, num_classes, **options)
        except UserError:
            raise
        except Exception as error:  # a user's class may raise anything
            raise UserError(
                f"network.kind={kind}: called with {list(shape)}, {num_classes} raised {said(error)}"
            ) from error
        if not isinstance(self.net, nn.Module):
            raise UserError(f"network.kind={kind}: made {type(self.net).__name__}, not a torch.nn.Module")

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None) -> Tensor:
        out: Any = self.net(x, condition, labels)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"network.kind={self.about['kind']}: returned {got} for x {list(x.shape)}: it must return a Tensor of "
                "the shape of x"
            )
        return out

    @classmethod
    def make(cls, config: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> OwnNetwork:
        return cls(config.kind, shape, num_classes, config.options)

    def save(self, folder: Path) -> list[str]:
        (folder / self.FILE).write_text(json.dumps(self.about, sort_keys=True) + "\n")
        save_model(self, str(folder / "network.safetensors"))
        return [self.FILE, "network.safetensors"]

    @classmethod
    def load(cls, folder: Path) -> OwnNetwork:
        about = json.loads((folder / cls.FILE).read_text())
        network = cls(about["kind"], tuple(about["shape"]), about["num_classes"], about["options"])
        load_model(network, str(folder / "network.safetensors"))
        return network


def build(config: NetworkConfig, shape: tuple[int, ...], num_classes: int, seed: int) -> DenoiserNetwork:
    """A network with weights drawn from `seed`, for samples of `shape`, (C, H, W) or (D,); 0 classes: unconditional.

    Raises UserError, naming the key, when the configuration does not fit the shape.
    """
    kind, shape = fitted(config, shape)
    network: type[DenoiserNetwork] = NETWORKS.load(kind) if NETWORKS.facts(kind).file else OwnNetwork
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.make(config, shape, num_classes)


def load(folder: Path, average: str = "") -> DenoiserNetwork:
    """The network of a sealed folder of weights, in evaluation mode.

    average  a name in `train.more_emas`; "" for the network that is sampled from

    Raises UserError, naming the folder or file, when there is no such network or a file is not what was sealed.
    """
    sealed = manifest.read(folder)
    inner = f"ema_{average}/" if average else ""
    others = () if average else ("ema_",)
    names = [e.name for e in sealed.files if e.name.startswith(inner) and not e.name.startswith(others)]
    kind = next((name for name, facts in NETWORKS.built_in.items() if inner + facts.file in names), None)
    if sealed.kind != "weights" or not (kind or inner + OwnNetwork.FILE in names):
        raise UserError(f"{folder / inner}: holds no exported network: give a folder of weights that a run sealed")
    manifest.check(folder, names)
    network: type[DenoiserNetwork] = NETWORKS.load(kind) if kind else OwnNetwork
    return network.load(folder / inner).eval()


def check_precision(section: str, precision: Precision, device: torch.device) -> None:
    """Raises UserError, naming `section`.precision, when the device cannot call a network in that precision."""
    if precision == "fp16" and device.type == "cpu":
        raise UserError(f"{section}.precision=fp16: a CPU computes no network in fp16; use no or bf16")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{section}.precision=bf16: this GPU has no bf16; use fp16 or no")


def casts_kept(device: torch.device) -> torch.autocast:
    """While open, autocast casts a float32 weight that requires a gradient once, not in every call of a network.

    autocast forgets its casts when the outermost block ends. This block is one in which autocast is off. The weights
    must not change while it is open.
    """
    return torch.autocast(device.type, enabled=False)


def check_attention(backend: Attention, device: torch.device) -> None:
    """Raises UserError, naming the key, when xformers is asked for and does not compute attention on the device."""
    if backend != "xformers":
        return
    key = "network.attention_backend=xformers"
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise UserError(
            f"{key}: xformers is not installed ({reason(error)}): pip install 'entroloop[cuda]', or set sdpa"
        ) from error
    if device.type != "cuda":
        raise UserError(f"{key}: xformers computes on GPUs only, and this process on {device.type}: set sdpa")
    try:
        q = torch.zeros(1, 2, 1, HEAD, device=device)  # [batch, places, heads, features]
        memory_efficient_attention(q, q, q)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{key}: xformers does not run on this GPU ({reason(error)}): set sdpa") from error
