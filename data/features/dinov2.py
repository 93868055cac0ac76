"""DINOv2's class token: the features of FD-DINOv2 (ViT-L/14) and a smaller network (ViT-S/14) for selection.

    uint8 [N, C, H, W]  ->  Pillow bicubic to 224 x 224  ->  ImageNet normalisation  ->  CLS, float32 [N, D]

Resize and normalisation follow the published FD-DINOv2 (Stein et al., arXiv 2306.04675, code in
layer6ai-labs/dgm-eval): the resize antialiases, rounds to whole levels and crops nothing. `dinov2-paper` is ViT-S/14 as
Shi et al. (arXiv 2509.16499) used it through transformers' own processor and model: it resizes the shorter side to 256,
crops the middle 224 x 224, and lets transformers resample the position embeddings.

B batch, C channels, H height, W width, D features (384 or 1024).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError, reading
from entroloop.data.features import frozen, weights

SIDE = 224
PAPER_SIDE = 256
PATCH = 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARTS = ("config.json", "model.safetensors")


def load_dinov2(name: str, shape: tuple[int, ...], device: torch.device) -> frozen.Frozen:
    """Loads the encoder from its folder among the weights, else from the hub's cache, never from the network.

    Raises UserError when there are no weights, when they are damaged or belong to another network, or when transformers
    is not installed.
    """
    frozen.check_images(name, shape)
    variant, dim = VARIANTS[name], ENCODERS.facts(name).dim
    assert dim is not None
    folder = folder_of(name, variant.weights)
    model = _model(folder, dim)
    if variant.published_positions:
        embeddings = model.embeddings
        embeddings.position_embeddings = torch.nn.Parameter(resample_positions(embeddings.position_embeddings.detach()))
    model = model.eval().requires_grad_(False).to(device)
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (MEAN, STD))

    def forward(images: Tensor) -> Tensor:
        pixels = images.to(device, non_blocking=True).float() / 255
        tokens: Tensor = model(pixel_values=(pixels - mean) / std).last_hidden_state
        return tokens[:, 0]

    made_of = [folder / part for part in PARTS]
    return frozen.Frozen(name, dim, shape, forward, weights=made_of, version=1, device=device, resize=variant.resize)


def whole(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, SIDE, SIDE]."""
    return frozen.pil_resize(images, (SIDE, SIDE), Image.Resampling.BICUBIC)


def middle(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, SIDE, SIDE]: resizes the shorter side to 256, then crops the middle."""
    height, width = images.shape[2:]
    shorter = min(height, width)
    size = (PAPER_SIDE * height // shorter, PAPER_SIDE * width // shorter)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    resized = frozen.pil_resize(images, size, Image.Resampling.BICUBIC)
    return resized[:, :, top : top + SIDE, left : left + SIDE]


@dataclass(frozen=True)
class Variant:
    """One encoder.

    weights              name of the folder of its weights, and of the weights on the hub
    resize               resizes images to SIDE x SIDE
    published_positions  True: `resample_positions` resamples the position embeddings; False: transformers does
    """

    weights: str
    resize: Callable[[Tensor], Tensor]
    published_positions: bool


VARIANTS = {
    "dinov2-small": Variant("dinov2-small", whole, published_positions=True),
    "dinov2-large": Variant("dinov2-large", whole, published_positions=True),
    "dinov2-paper": Variant("dinov2-small", middle, published_positions=False),
}


load_small = functools.partial(load_dinov2, "dinov2-small")
load_large = functools.partial(load_dinov2, "dinov2-large")
load_paper = functools.partial(load_dinov2, "dinov2-paper")


def folder_of(encoder: str, name: str) -> Path:
    local = weights.weights_folder() / name
    if local.exists():
        for part in PARTS:
            if not (local / part).is_file():
                raise UserError(f"{local}: lacks {part}: save_pretrained writes {' and '.join(PARTS)}")
        return local
    from huggingface_hub import try_to_load_from_cache

    cached = [try_to_load_from_cache(f"facebook/{name}", part) for part in PARTS]
    if all(isinstance(path, str) for path in cached):
        return Path(str(cached[0])).parent
    raise UserError(
        f"encoder {encoder}: no weights: put {' and '.join(PARTS)} of https://huggingface.co/facebook/{name} "
        f"into {local} (or its parent folder's name into {weights.VARIABLE}), or have them in the hub's cache"
    )


def _model(folder: Path, dim: int) -> Any:
    """transformers' Dinov2Model, with every weight read from the file."""
    try:
        from transformers import Dinov2Config, Dinov2Model
        from transformers.utils import logging
    except ImportError as error:
        raise UserError("encoder dinov2: needs transformers: pip install 'entroloop[encoders]'") from error
    with reading(str(folder / PARTS[0]), "cannot be read as a DINOv2 configuration"):
        raw, _ = Dinov2Config.get_config_dict(folder, local_files_only=True)
        config = Dinov2Config.from_dict(raw)
    found = (raw.get("model_type"), config.hidden_size, config.patch_size)
    if found != ("dinov2", dim, PATCH):
        raise UserError(
            f"{folder / PARTS[0]}: is {found[0]} with {found[1]} features and patches of {found[2]}, "
            f"not dinov2 with {dim} and {PATCH}"
        )
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # the check below refuses missing weights
    logging.disable_progress_bar()
    try:
        with reading(str(folder / PARTS[1]), "cannot be read as weights of DINOv2"):
            model, info = Dinov2Model.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
    wrong = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if wrong:
        raise UserError(f"{folder / PARTS[1]}: lacks weights of DINOv2 or has other shapes: {weights.some(wrong)}")
    return model


def resample_positions(positions: Tensor) -> Tensor:
    """Position embeddings [1, 1 + M*M, D] -> [1, 257, D], for the 16 x 16 patches of 224 pixels.

    The scale contains an offset of 0.1, as in Meta's own code (facebookresearch/dinov2, `interpolate_offset`) and in
    the published FD-DINOv2. transformers omits this offset.
    """
    M, target = round((positions.shape[1] - 1) ** 0.5), SIDE // PATCH
    if target == M:
        return positions
    grid = positions[:, 1:].reshape(1, M, M, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((target + 0.1) / M,) * 2, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, target * target, -1)], 1)
