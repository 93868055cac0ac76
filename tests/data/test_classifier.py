from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from entroloop.data.errors import UserError
from entroloop.data.features import classifier
from entroloop.data.store import manifest


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(images))
    pixels = np.rint(images.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return pixels[order], labels[order].astype(np.int64)


@pytest.fixture(scope="module")
def model(digits) -> classifier.Classifier:
    return classifier.fit(digits[0][:768], digits[1][:768], 10, seed=0, device=torch.device("cpu"))


@pytest.mark.slow
def test_held_out_digits_are_recognised(model, digits):
    assert classifier.accuracy(model, digits[0][768:], digits[1][768:]) >= 0.95


@pytest.mark.slow
def test_fit_repeats_and_depends_on_the_seed_and_leaves_the_global_generator_alone(digits):
    images, labels = digits[0][:20, :, ::2, ::2], digits[1][:20]
    before = torch.get_rng_state()
    states = [classifier.fit(images, labels, 10, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_vectors_are_classified_on_any_scale():
    x, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    model = classifier.fit(x[:120], y[:120], 3, seed=0)
    assert classifier.accuracy(model, x[120:], y[120:]) >= 0.9
    assert model.features(torch.from_numpy(x)).shape == (178, 64)


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 16, 16), (1, 28, 28), (3, 100, 100)])
def test_any_image_shape_gives_64_features(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    assert classifier.Classifier(shape, 5).features(torch.from_numpy(images)).shape == (2, 64)


@pytest.mark.slow
def test_saved_bytes_repeat_and_load_gives_the_same_network(model, digits, tmp_path: Path):
    seals = [classifier.save(tmp_path / name, model, {"seed": 0}, {"data": "abc"}) for name in "ab"]
    assert seals[0] == seals[1]
    assert seals[0].kind == "classifier"
    assert seals[0].about["seed"] == 0
    assert manifest.problems(tmp_path / "a") == []
    loaded = classifier.load(tmp_path / "a")
    x = torch.from_numpy(digits[0][:5])
    assert torch.equal(loaded(x), model(x))


def test_damaged_weights_are_named(tmp_path: Path):
    classifier.save(tmp_path / "c", classifier.Classifier((1, 8, 8), 10))
    with (tmp_path / "c" / "weights.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"oops")
    with pytest.raises(UserError, match=r"weights\.safetensors: content changed"):
        classifier.load(tmp_path / "c")


def test_labels_out_of_range_are_refused(digits):
    with pytest.raises(UserError, match="outside 0 … 4"):
        classifier.fit(digits[0][:64], digits[1][:64], 5, seed=0)
