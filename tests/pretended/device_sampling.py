"""Sampling and encoders on a CUDA device, pretended or real: every sampler and encoder, against the CPU."""

import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from exported import MLP, export
from inception_weights import fill

from entroloop.data.catalogue import ENCODERS
from entroloop.data.features import classifier, inception, weights
from entroloop.data.features.encoder import load_encoder
from entroloop.data.features.frozen import in_batches
from entroloop.data.features.inception_network import FID, TORCHVISION, network
from entroloop.trainer.catalogue import SAMPLERS
from entroloop.trainer.generate import Generator, SamplePlan
from entroloop.trainer.network import load
from entroloop.trainer.sample_config import SampleConfig

pytestmark = pytest.mark.gpu
PRETENDED = "pretended" in sys.modules
LEVELS = 0 if PRETENDED else 1  # by which images may differ: a real device adds in another order
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PLAN = SamplePlan(0, 0, 4, 4)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of exported weights, by objective, and of vectors."""
    base = tmp_path_factory.mktemp("weights")
    for objective in ("edm", "ddpm"):
        export(base / objective, objective=objective, moved=0.02, shape=(3, 8, 8))
    export(base / "vectors", config=MLP, shape=(5,), moved=0.02)
    export(base / "guide", shape=(3, 8, 8), moved=0.05)
    return base


def drawn(folder, config, device, guide=None):
    return Generator(folder, SampleConfig(batch=4, **config), PLAN, device, guide=guide).samples(0, 4)[0]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("edm", {"sampler": name}) for name in SAMPLERS.built_in if name != "ddpm"},
    "ddpm": ("ddpm", {"sampler": "ddpm"}),
    "churn": ("edm", {"sampler": "heun", "s_churn": 4.0}),
    "guidance": ("edm", {"guidance": 2.0}),
    "vectors": ("vectors", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_samplers(case, networks):
    name, config = CASES[case]
    on_cpu, on_gpu = (drawn(networks / name, {"steps": 4, **config}, device) for device in (CPU, GPU))
    np.testing.assert_allclose(on_gpu.astype(float), on_cpu.astype(float), atol=1e-4 if name == "vectors" else LEVELS)


@pytest.mark.parametrize("case", CASES)
def test_the_loop_over_noise_levels_never_waits_for_the_device(case, networks, watch):
    name, config = CASES[case]
    counts = []
    for steps in (3, 5):
        found = Generator(networks / name, SampleConfig(batch=4, steps=steps, **config), PLAN, GPU)
        found.samples(0, 4)
        with watch() as seen:
            found.samples(0, 4)
        counts.append(seen.syncs.total())
    assert counts[0] == counts[1] <= 3, seen.syncs


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions(precision, networks):
    assert np.isfinite(drawn(networks / "vectors", {"steps": 3, "precision": precision}, GPU)).all()


@pytest.mark.parametrize("guide", [False, True])
def test_weights_are_cast_to_half_precision_once_per_batch_of_samples(guide, networks, watch):
    """Nine network calls have 9 / 5 of the casts of five, without those of the weights."""
    casts = []
    config = {"guide": "previous", "guide_weight": 1.5} if guide else {}
    for steps in (3, 5):
        given = SampleConfig(batch=4, steps=steps, precision="bf16", **config)
        found = Generator(networks / "edm", given, PLAN, GPU, guide=networks / "guide" if guide else None)
        with watch() as seen:
            found.samples(0, 4)
        casts.append(seen.launches["_to_copy"])
    others = 5 * (casts[1] - casts[0]) // 4
    weights = sum(1 for name in load(networks / "edm").state_dict() if "norm" not in name)
    assert casts[0] - others >= weights * (1 + guide) > 50


def test_autoguidance(networks):
    config = {"steps": 3, "guide": "previous", "guide_weight": 1.5}
    on_cpu, on_gpu = (drawn(networks / "edm", config, device, networks / "guide") for device in (CPU, GPU))
    np.testing.assert_allclose(on_gpu.astype(float), on_cpu.astype(float), atol=LEVELS)


SHAPE = (3, 12, 12)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


def save_inception(folder):
    for form, file in ((FID, inception.STATES[0]), (TORCHVISION, inception.PAPER_STATE)):
        shapes = {k: v.shape for k, v in network(form).state_dict().items() if not k.endswith("num_batches_tracked")}
        torch.save(fill({**shapes, "fc.weight": (form.classes, 2048), "fc.bias": (form.classes,)}), folder / file)


def save_dinov2(folder, size, heads):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=size, num_hidden_layers=1, num_attention_heads=heads, image_size=518, patch_size=14, mlp_ratio=1
    )
    model = Dinov2Model(config)
    model.load_state_dict(fill({name: value.shape for name, value in model.state_dict().items()}))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a classifier with random weights."""
    folder = tmp_path_factory.mktemp("classifier") / "fitted"
    classifier.save(folder, classifier.Classifier(SHAPE, 2))
    return folder


@pytest.mark.long
def test_a_classifier_is_fitted_on_the_device():
    labels = np.arange(len(IMAGES)) % 2
    model = classifier.fit(IMAGES, labels, 2, seed=0, device=GPU)
    assert classifier.accuracy(model, IMAGES, labels) == 1


LARGE = {"inception", "inception-paper", "dinov2-large"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LARGE else ()) for name in ENCODERS.built_in]
)
def test_encoders(name, fitted, tmp_path, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    if name.startswith("dinov2"):
        pytest.importorskip("transformers")
        save_dinov2(tmp_path / name.replace("paper", "small"), *(1024, 16) if name == "dinov2-large" else (384, 6))
    if name.startswith("inception"):
        save_inception(tmp_path)
    made = [load_encoder(name, SHAPE, classifier=fitted, device=device) for device in (CPU, GPU)]
    for encoder in made:
        if hasattr(encoder, "_batch"):
            encoder._batch = 2
    on_cpu, on_gpu = (encoder(IMAGES[:3]) for encoder in made)
    off = 1e-5 if PRETENDED else 1e-3
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=off, atol=off * np.abs(on_cpu).max())


def test_blocks_are_prepared_by_another_thread_and_copied_without_waiting(watch):
    makers = set()

    def prepare(block):
        makers.add(threading.current_thread())
        return block + 1

    rows = np.arange(7, dtype=np.float32)[:, None]
    with watch() as seen:
        found = in_batches(rows, lambda x: 2 * x.to(GPU, non_blocking=True), 1, 2, GPU, prepare)
    np.testing.assert_array_equal(found, 2 * (rows + 1))
    assert threading.current_thread() not in makers
    assert seen.syncs.total() == 4, seen.syncs  # the features of each block
