"""The two Inception encoders: the features of the standard FID, and the features of the paper's own Fréchet distance.

    inception        uint8 [N, C, H, W]  ->  TF1 bilinear to 299  ->  (x - 128) / 128  ->  pool3, float32 [N, 2048]
    inception-paper  uint8 [N, C, H, W]  ->  Pillow bilinear to 299  ->  2 x / 255 - 1  ->  pooled, float32 [N, 2048]

B batch, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from entroloop.data.catalogue import INCEPTION_FEATURES as DIM
from entroloop.data.errors import UserError, reading
from entroloop.data.features import frozen, weights
from entroloop.data.features.inception_network import FID, TORCHVISION, Form, network

SIDE = 299
COUNTER = "num_batches_tracked"  # counter of batch norm, present in some files and not used here
SCRIPT = "inception-2015-12-05.pt"
STATES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
PAPER_STATE = "inception_v3_google-0cc3c7bd.pth"
PUBLISHED = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt or "
    "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
)
PAPER_PUBLISHED = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"


def load_network(path: Path, form: Form) -> nn.Sequential:
    """The network with the weights of a state dict. Raises UserError, naming the file, when the weights do not fit."""
    kept = {
        name: value
        for name, value in weights.read_state(path).items()
        if not name.endswith(COUNTER) and not (form is TORCHVISION and name.startswith("AuxLogits."))
    }
    with torch.device("meta"):
        net = network(form)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items() if not name.endswith(COUNTER)}
    weights.fit(kept, {**shapes, "fc.weight": (form.classes, DIM), "fc.bias": (form.classes,)}, path, form.name)
    net.load_state_dict({name: _laid_out(kept[name].float()) for name in shapes}, assign=True)
    return net.requires_grad_(False)


def _laid_out(x: Tensor) -> Tensor:
    """A four-dimensional tensor in memory order channels-last: convolutions on CPUs then need a third less time."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def tf1_resize(images: Tensor, side: int) -> Tensor:
    """Bilinear resize of TensorFlow 1, float32 [B, C, H, W] -> [B, C, side, side].

    Output pixel i samples position i * (size / side), without half-pixel centres and without antialiasing
    (tensorflow/core/kernels/resize_bilinear_op.cc). As in TensorFlow, the computation is in float32 and interpolates
    along rows first, then along columns.
    """
    for axis in (3, 2):
        size = images.shape[axis]
        at = torch.arange(side, dtype=torch.float32, device=images.device)
        at = at * torch.tensor(size / side, dtype=torch.float32, device=images.device)
        low = at.long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        weight = (at - low).view((side, 1) if axis == 2 else (side,))
        start = images.index_select(axis, low)
        images = start + (images.index_select(axis, high) - start) * weight
    return images


def load_inception(shape: tuple[int, ...], device: torch.device) -> frozen.Frozen:
    """The standard FID features, from NVIDIA's TorchScript file if it exists, else from torch-fidelity's state dict.

    Raises UserError when neither file exists, or when the file is damaged or holds another network.
    """
    name = "inception"
    frozen.check_images(name, shape)
    path = weights.find(name, (SCRIPT, *STATES), PUBLISHED)
    forward = _scripted(path, device) if path.name == SCRIPT else _fid_forward(path, device)
    return frozen.Frozen(name, DIM, shape, forward, weights=[path], version=1, device=device, part="inception")


def _fid_forward(path: Path, device: torch.device) -> frozen.Forward:
    net = load_network(path, FID).to(device)

    def forward(images: Tensor) -> Tensor:
        pixels = (tf1_resize(images.to(device, non_blocking=True).float(), SIDE) - 128) / 128
        features: Tensor = net(_laid_out(pixels))
        return features

    return forward


def _scripted(path: Path, device: torch.device) -> frozen.Forward:
    """NVIDIA's script, which resizes and scales images itself. A trial call checks that the file is this network."""
    with reading(str(path), "cannot be read as TorchScript"):
        script = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]

    def forward(images: Tensor) -> Tensor:
        features: Tensor = script(images.to(device), return_features=True)
        return features

    what = "is not the FID Inception network"
    with reading(str(path), f"{what}: it cannot be called with return_features"), torch.inference_mode():
        trial = forward(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    if not isinstance(trial, Tensor) or trial.shape != (1, DIM):
        got = list(trial.shape) if isinstance(trial, Tensor) else type(trial).__name__
        raise UserError(f"{path}: {what}: features of 1 image are {got}, not [1, {DIM}]")
    return forward


def load_paper_inception(shape: tuple[int, ...], device: torch.device) -> frozen.Frozen:
    """The features of the paper's own Fréchet distance. They are unrelated to the standard FID.

    Raises UserError when the file is missing, damaged or holds another network.
    """
    name = "inception-paper"
    frozen.check_images(name, shape)
    path = weights.find(name, (PAPER_STATE,), PAPER_PUBLISHED)
    net = load_network(path, TORCHVISION).to(device)

    def forward(images: Tensor) -> Tensor:
        pixels = (images.to(device, non_blocking=True).float() / 255 - 0.5) / 0.5
        features: Tensor = net(_laid_out(pixels))
        return features

    return frozen.Frozen(
        name, DIM, shape, forward, weights=[path], version=1, device=device, part="inception-paper",
        resize=lambda images: frozen.pil_resize(images, (SIDE, SIDE), Image.Resampling.BILINEAR),
    )  # fmt: skip
