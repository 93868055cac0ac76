"""The files by which diffusers loads exported weights of images as one of its own pipelines.

    objective, labels   pipeline                  scheduler
    ddpm, without       DDPMPipeline              DDPMScheduler, with the noise levels of `ddpm_sampling_sigmas`
    ddpm, with          ConsistencyModelPipeline  the same; this pipeline passes labels to the UNet
    edm                 ConsistencyModelPipeline  EDMEulerScheduler: the sampler `euler`

ConsistencyModelPipeline asks its scheduler to scale the network's input, so it works with every scheduler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entroloop.data import files
from entroloop.trainer.diffusion import BETAS, SIGMA_DATA
from entroloop.trainer.network import ImageNetwork

FILES = ("model_index.json", "scheduler/scheduler_config.json")
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": (
        "DDPMScheduler",
        {
            "beta_start": BETAS[0], "beta_end": BETAS[1], "beta_schedule": "linear", "prediction_type": "epsilon",
            "clip_sample": True, "variance_type": "fixed_small", "timestep_spacing": "linspace",
        },
    ),
    "edm": (
        "EDMEulerScheduler",
        {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": SIGMA_DATA, "prediction_type": "epsilon"},
    ),
}  # fmt: skip


def save(folder: Path, network: object, objective: str, shape: tuple[int, ...], num_classes: int) -> list[str]:
    """Writes the files beside the folder `unet`. Returns their names, or none where no pipeline of diffusers fits.

    None fits vectors, images that are not square, and networks and objectives that are not built in.
    """
    square = len(shape) == 3 and shape[1] == shape[2]
    if not (square and isinstance(network, ImageNetwork) and objective in _SCHEDULERS):
        return []
    scheduler, values = _SCHEDULERS[objective]
    pipeline = "DDPMPipeline" if objective == "ddpm" and not num_classes else "ConsistencyModelPipeline"
    version = {"_diffusers_version": network.unet.config["_diffusers_version"]}
    index = {"scheduler": ["diffusers", scheduler], "unet": ["diffusers", "UNet2DModel"]}
    files.put(folder / FILES[0], files.json_bytes({"_class_name": pipeline, **version, **index}))
    files.put(folder / FILES[1], files.json_bytes({"_class_name": scheduler, **version, **values}))
    return list(FILES)
