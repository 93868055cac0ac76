"""Images in a frozen autoencoder's latent space, as vectors for training, selection and measures.

    sealed images uint8 [N, 3, S, S]  ->  encode  ->  sealed vectors float32 [N, c * s * s]   and back by decode

A latent is the mean of the autoencoder's posterior, shifted and scaled as the autoencoder's configuration says, and
flattened in the order c, s, s. `network.fold: [c, s, s]` undoes the flattening. Labels and provenance are kept.

N images, S pixels per side, c latent channels, s latent pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from entroloop.data import files
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.precision import full_precision
from entroloop.data.seeds import Part
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import is_done, seal_dataset, write_shard

BATCH = 16  # images per call; the last bits depend on it


class Autoencoder:
    """A local AutoencoderKL in diffusers' form, in float32. Raises UserError when the folder does not hold one."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        weights = folder / "diffusion_pytorch_model.safetensors"
        if not (folder / "config.json").is_file() or not weights.is_file():
            raise UserError(f"{folder}: no autoencoder: give one with config.json and {weights.name} (AutoencoderKL)")
        self.net = AutoencoderKL.from_pretrained(folder, local_files_only=True).to(device, torch.float32)
        self.net.eval().requires_grad_(False)
        self.device, self.digest = device, files.sha256(weights)
        self.scale = float(self.net.config.scaling_factor)
        self.shift = float(self.net.config.shift_factor or 0.0)
        self.channels = int(self.net.config.latent_channels)

    @full_precision()
    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 [B, c * s * s]."""
        y = images.to(self.device).float() / 127.5 - 1
        mean: Tensor = self.net.encode(y).latent_dist.mode()
        return ((mean - self.shift) * self.scale).flatten(1).cpu()

    @full_precision()
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """float32 [B, c * s * s] -> uint8 [B, 3, S, S]. Raises UserError when their length does not fit."""
        side = round((latents.shape[1] / self.channels) ** 0.5)
        if self.channels * side * side != latents.shape[1]:
            raise UserError(
                f"vectors of {latents.shape[1]} features are not latents of {self.channels} square channels: "
                "give the autoencoder that made them"
            )
        z = latents.to(self.device).reshape(-1, self.channels, side, side) / self.scale + self.shift
        y: Tensor = self.net.decode(z).sample
        return (y * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def convert(
    source: Path,
    dest: Path,
    autoencoder: Autoencoder,
    *,
    back: bool = False,
    part: Part | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Encodes a sealed set of images into a sealed set of latents, or decodes latents into images (`back`), by shard.

    Shards that exist are not made again, so a second call continues an interrupted one. With a `part`, the call makes
    the shards of that part only and seals nothing; a call without `part` seals the set.
    Raises UserError when the source does not fit or `dest` holds something else, Interrupted when told to stop.
    """
    dataset = Dataset(source)
    if back != (len(dataset.shape) == 1):
        raise UserError(f"{source}: holds {dataset.manifest.kind}: latents are decoded, images encoded")
    if not back and dataset.shape[0] != 3:
        raise UserError(f"{source}: grey images: import them with --color rgb")
    made_from = {"source": dataset.manifest.digest, "autoencoder": autoencoder.digest}
    if manifest.is_sealed(dest):
        if manifest.read(dest).made_from != made_from:
            raise UserError(f"{dest}: was made from something else: give another folder")
        return
    starts = dataset.starts.tolist()
    call = autoencoder.decode if back else autoencoder.encode
    for number in (part or Part()).of(len(dataset.shard_names)):
        if is_done(dest, number):
            continue
        if should_stop():
            raise Interrupted(f"stopped before shard {number} of {len(dataset.shard_names)}")
        samples, labels = dataset.shard(number)
        given = torch.from_numpy(samples)
        made = torch.cat([call(given[i : i + BATCH]) for i in range(0, len(given), BATCH)]).numpy()
        own = dataset.provenance.take(slice(starts[number], starts[number + 1]))
        write_shard(dest, number, made, labels, own, first_key=starts[number])
    if part is None:
        about = {"num_classes": dataset.num_classes} if dataset.labelled else {}
        seal_dataset(dest, about=about, made_from=made_from)
