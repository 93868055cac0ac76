"""Latents of a tiny random autoencoder: values, the way back, restarts, and a run on them."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from loops import command, sealed_bytes, tiny_file
from present import present

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.seeds import Part
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.trainer.latents import Autoencoder, convert

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    net = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.5, **blocks)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (160, 3, 8, 8), dtype=np.uint8)
    for number in range(4):
        rows = np.arange(40) + 40 * number
        where = Provenance(np.full(40, -1), rows, tuple(f"{i}.png" for i in rows))
        write_shard(folder, number, pixels[rows], rows % 3, where, first_key=40 * number)
    seal_dataset(folder, about={"num_classes": 3})
    return folder


def test_latents_are_the_scaled_posterior_means_and_keep_labels_and_names(vae, images, tmp_path):
    autoencoder = Autoencoder(vae, CPU)
    looks = iter([False, False, True])
    with pytest.raises(Interrupted, match="shard 2 of 4"):
        convert(images, tmp_path / "z", autoencoder, should_stop=lambda: next(looks))
    convert(images, tmp_path / "z", autoencoder, part=Part(1, 2))
    convert(images, tmp_path / "z", autoencoder)
    real, latents = Dataset(images), Dataset(tmp_path / "z")
    rows = np.array([0, 41, 159])
    y = torch.from_numpy(real.take(rows)).float() / 127.5 - 1
    net = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        mean = net.encode(y).latent_dist.mean
        decoded = net.decode(mean).sample
    torch.testing.assert_close(torch.from_numpy(latents.take(rows)), 0.5 * mean.flatten(1), rtol=1e-4, atol=1e-5)
    assert latents.shape == (4 * 4 * 4,)
    assert present(latents.labels).tolist() == present(real.labels).tolist()
    assert latents.provenance.source == real.provenance.source

    convert(tmp_path / "z", tmp_path / "back", autoencoder, back=True)
    found = torch.from_numpy(Dataset(tmp_path / "back").take(rows)).float()
    assert (found - (decoded * 127.5 + 127.5).clamp(0, 255)).abs().max() <= 0.51
    convert(images, tmp_path / "whole", autoencoder)
    assert sealed_bytes(tmp_path / "whole") == sealed_bytes(tmp_path / "z")


def test_what_does_not_fit_is_refused(vae, images, tmp_path):
    with pytest.raises(UserError, match="no autoencoder"):
        Autoencoder(tmp_path, CPU)
    autoencoder = Autoencoder(vae, CPU)
    with pytest.raises(UserError, match="latents are decoded, images encoded"):
        convert(images, tmp_path / "x", autoencoder, back=True)
    with pytest.raises(UserError, match="not latents of 4 square channels"):
        autoencoder.decode(torch.zeros(1, 60))


@pytest.mark.slow
def test_a_run_trains_and_samples_in_latent_space(vae, images, tmp_path):
    made = command("latents", images, tmp_path / "z", "--vae", vae)
    assert made.returncode == 0, made.stderr
    assert "160 vectors of 64" in made.stdout
    path = tiny_file(tmp_path, f"data.source={tmp_path / 'z'}", "network.fold=[4, 4, 4]", "generations=1")
    done = command("run", path)
    assert done.returncode == 0, done.stderr
    layout = Layout(tmp_path / "runs" / "tiny")
    unet = json.loads((layout.of(Step(0, "train")) / "unet" / "config.json").read_text())
    assert (unet["in_channels"], unet["sample_size"]) == (4, 4)
    shown = command("latents", layout.of(Step(0, "sample")), tmp_path / "shown", "--vae", vae, "--decode")
    assert shown.returncode == 0, shown.stderr
    assert Dataset(tmp_path / "shown").shape == (3, 8, 8)


def test_weights_in_half_precision_are_computed_with_in_float32(vae, tmp_path):
    AutoencoderKL.from_pretrained(vae).half().save_pretrained(tmp_path)
    assert {p.dtype for p in Autoencoder(tmp_path, CPU).net.parameters()} == {torch.float32}
