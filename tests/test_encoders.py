from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entroloop.data import classifier, encoders
from entroloop.data.errors import UserError
from entroloop.data.shards import Samples

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (150, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("classifier")
    classifier.save(path, classifier.Classifier((1, 8, 8), 10))
    return path


def test_pixel_flattens_images_and_passes_vectors():
    encoder = encoders.load_encoder("pixel", (1, 8, 8))
    assert encoder.dim == 64
    assert np.array_equal(encoder(IMAGES), IMAGES.reshape(150, 64).astype(np.float32))
    vectors = rng.normal(size=(4, 3)).astype(np.float32)
    assert np.array_equal(encoders.load_encoder("pixel", (3,))(vectors), vectors)


def test_classifier_features_do_not_depend_on_how_samples_are_cut(folder):
    encoder = encoders.load_encoder("classifier", (1, 8, 8), classifier=folder)
    whole = encoder(IMAGES)
    assert whole.shape == (150, 64)
    assert whole.dtype == np.float32
    for size in (1, 7, 64, 100):
        cut = np.concatenate([encoder(IMAGES[i : i + size]) for i in range(0, 150, size)])
        assert np.array_equal(cut, whole)
    assert encoder(IMAGES[:0]).shape == (0, 64)


def test_digest_follows_the_weights(folder, tmp_path):
    classifier.save(tmp_path / "other", classifier.Classifier((1, 8, 8), 10))
    one, same, other = (
        encoders.load_encoder("classifier", (1, 8, 8), classifier=path).digest
        for path in (folder, folder, tmp_path / "other")
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixle", "did you mean pixel"),
        ("nothing-like-it", "give one of pixel, classifier"),
        ("classifier", "needs a labelled data set"),
        ("no_such_module_x:f", "cannot import no_such_module_x"),
        ("test_encoders:missing", "has no 'missing'"),
        ("test_encoders:wrong", r"float32 \[2, 7\], got float64 \[2, 1\]"),
        ("test_encoders:IMAGES", "must be, or return"),
    ],
)
def test_bad_names_give_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        encoders.load_encoder(name, (1, 8, 8))
    assert "\n" not in str(caught.value)


def test_classifier_of_another_shape_is_refused(folder):
    with pytest.raises(UserError, match=r"takes samples of shape \(1, 8, 8\), not \(3, 8, 8\)"):
        encoders.load_encoder("classifier", (3, 8, 8), classifier=folder)


class Mean:
    name, dim, digest = "mean", 1, "0" * 64

    def __init__(self, shape, device):
        self.shape = shape

    def __call__(self, samples: Samples) -> np.ndarray:
        return samples.reshape(len(samples), -1).mean(1, keepdims=True).astype(np.float32)


class Wrong(Mean):
    dim = 7

    def __call__(self, samples: Samples) -> np.ndarray:
        return samples.reshape(len(samples), -1).mean(1, keepdims=True)


mean = Mean((1, 8, 8), None)
wrong = Wrong((1, 8, 8), None)


@pytest.mark.parametrize("name", ["test_encoders:mean", "test_encoders:Mean"])
def test_own_encoder_is_an_object_or_a_factory(name):
    assert np.allclose(encoders.load_encoder(name, (1, 8, 8))(IMAGES)[:, 0], IMAGES.mean((1, 2, 3)), rtol=1e-5)
