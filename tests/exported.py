"""Small networks exported as training exports them, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from entroloop.trainer import checkpoint, network
from entroloop.trainer.diffusion import Scale
from entroloop.trainer.network_config import NetworkConfig

UNET = NetworkConfig(channels=(8,), norm_groups=4)
MLP = NetworkConfig(width=16, depth=1)


def export(
    folder: Path,
    *,
    config: NetworkConfig = UNET,
    shape: tuple[int, ...] = (1, 4, 4),
    num_classes: int = 3,
    objective: str = "edm",
    seed: int = 0,
    moved: float = 0.0,
    center: float = 0.0,
) -> network.DenoiserNetwork:
    """Seals a network in `folder` and returns it; `moved` shifts its weights at random, as training on would."""
    net = network.build(config, shape, num_classes, seed=seed)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            generator = torch.Generator().manual_seed(i)
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
    images = len(shape) == 3
    scale = Scale(True, (127.5,), (127.5,)) if images else Scale(False, (center,) * shape[0], (1.0,) * shape[0])
    checkpoint.export(
        folder, {"": net}, objective=objective, scale=scale, num_classes=num_classes, shape=shape, images_seen=0,
        made_from={},
    )  # fmt: skip
    return net.eval()
