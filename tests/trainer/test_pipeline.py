"""Plain diffusers loads the export as a pipeline, which draws the same images as this program's samplers."""

import diffusers
import numpy as np
import pytest
import torch
from exported import MLP, UNET, export

from entroloop.data.seeds import generator
from entroloop.data.store import manifest
from entroloop.trainer import pipeline
from entroloop.trainer.diffusion import ddpm_sampling_sigmas, ddpm_sigmas, karras_sigmas
from entroloop.trainer.generate import Generator, SamplePlan
from entroloop.trainer.sample_config import SampleConfig

KINDS = [("ddpm", 0, "DDPMPipeline"), ("ddpm", 3, "ConsistencyModelPipeline"), ("edm", 0, "ConsistencyModelPipeline"),
         ("edm", 3, "ConsistencyModelPipeline")]  # fmt: skip


def load(folder):
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize(("objective", "classes", "kind"), KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_the_pipeline_draws_the_same_images(tmp_path, objective, classes, kind, shape):
    export(tmp_path, shape=shape, num_classes=classes, objective=objective, moved=0.1)
    loaded = load(tmp_path)
    assert type(loaded).__name__ == kind
    assert manifest.problems(tmp_path) == []
    labels = {"class_labels": [0, 1, 2, 0, 1]} if classes else {}
    for steps in (2, 9, 30):
        noise = [generator(7, 1, "sample", i) for i in range(5)]
        images = loaded(batch_size=5, generator=noise, num_inference_steps=steps, output_type="np", **labels).images
        theirs = np.rint(np.asarray(images) * 255).astype(int).reshape(5, *shape[1:], shape[0]).transpose(0, 3, 1, 2)
        config = SampleConfig(sampler={"ddpm": "ddpm", "edm": "euler"}[objective], steps=steps)
        mine, _ = Generator(tmp_path, config, SamplePlan(7, 1, 5, 5), torch.device("cpu")).samples(0, 5)
        assert mine.std() > 10
        assert np.abs(theirs - mine).max() <= 1


def test_the_schedulers_have_the_same_levels(tmp_path):
    for objective in ("ddpm", "edm"):
        export(tmp_path / objective, num_classes=0, objective=objective)
    ddpm, edm = (load(tmp_path / objective).scheduler for objective in ("ddpm", "edm"))
    for steps in (2, 3, 5, 18, 50, 333, 1000):
        ddpm.set_timesteps(steps)
        assert torch.equal(ddpm_sigmas()[ddpm.timesteps], ddpm_sampling_sigmas(steps)[:-1])
        edm.set_timesteps(steps)
        torch.testing.assert_close(edm.sigmas.double(), karras_sigmas(steps), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("config", "shape", "objective"), [(MLP, (5,), "edm"), (UNET, (1, 4, 8), "edm"), (UNET, (1, 4, 4), "mine:own")]
)
def test_no_pipeline_where_none_of_diffusers_fits(tmp_path, config, shape, objective):
    from entroloop.trainer import network

    net = network.build(config, (1, 4, 4) if len(shape) == 3 else shape, 0, 0)
    assert pipeline.save(tmp_path, net, objective, shape, 0) == []
    assert not list(tmp_path.iterdir())


def test_further_averages_are_pipelines_too(tmp_path):
    from entroloop.trainer import checkpoint, network
    from entroloop.trainer.diffusion import Scale

    net = network.build(UNET, (1, 4, 4), 0, 0)
    checkpoint.export(
        tmp_path, {"": net, "long": net}, objective="edm", scale=Scale.of_images(), num_classes=0, shape=(1, 4, 4),
        images_seen=0, made_from={},
    )  # fmt: skip
    assert type(load(tmp_path / "ema_long")).__name__ == "ConsistencyModelPipeline"
    network.load(tmp_path, "long")
