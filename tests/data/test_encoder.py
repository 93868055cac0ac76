from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.features import classifier
from entroloop.data.features import encoder as encoders
from entroloop.data.store.shards import Samples

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (150, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("classifier")
    classifier.save(path, classifier.Classifier((1, 8, 8), 10))
    return path


def test_pixel_flattens_images_and_passes_vectors():
    encoder = encoders.load_encoder("pixel", (1, 8, 8))
    assert encoder.dim == 64
    assert np.array_equal(encoder(IMAGES), IMAGES.reshape(150, 64).astype(np.float32))
    assert encoder(IMAGES[:0]).shape == (0, 64)
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


def test_the_weights_hash_is_that_of_the_file(folder):
    encoder = encoders.load_encoder("classifier", (1, 8, 8), classifier=folder)
    file = hashlib.sha256((folder / classifier.WEIGHTS).read_bytes()).hexdigest()
    assert encoders.weights_of(encoder) == {classifier.WEIGHTS: file}
    assert encoder.digest == files.digest(
        {"encoder": "classifier", "version": 1, "weights": {classifier.WEIGHTS: file}}
    )
    assert encoders.weights_of(encoders.load_encoder("pixel", (1, 8, 8))) == {}
    assert encoders.weights_of(mean) is None


def test_every_encoder_says_how_it_resizes():
    assert encoders.resize_of("pixel") == "none"
    assert encoders.resize_of("inception") == "TF1 bilinear to 299 x 299"
    for name in ("test_encoder:mean", "test_encoder:Mean", "no_such_module_x:f", "unknown"):
        assert encoders.resize_of(name) == "its own", name
    assert encoders.resize_of("test_encoder:Halved") == "halved"
    assert encoders.resize_of("test_encoder:halved", halved((1, 8, 8), None)) == "halved"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixle", "did you mean pixel"),
        ("nothing-like-it", "give one of pixel, classifier"),
        ("classifier", "needs a labelled data set"),
        ("no_such_module_x:f", "cannot import no_such_module_x"),
        ("test_encoder:missing", "has no 'missing'"),
        ("test_encoder:wrong", r"float32 \[2, 7\], got float64 \[2, 1\]"),
        ("test_encoder:IMAGES", "must be, or return"),
        ("os:getcwd", "os:getcwd: called with \\(shape, device\\) it raised TypeError.*must be, or return"),
        (":x", "give module:attribute"),
        ("os:", "give module:attribute"),
        ("own_encoder_that_raises:x", "importing own_encoder_that_raises raised RuntimeError: no such luck$"),
        ("own_script:x", "importing own_script raised SystemExit: 0$"),
        ("test_encoder:leaving", "raised SystemExit: 0.*must be, or return"),
        ("test_encoder:failing_factory", "raised ZeroDivisionError: division by zero.*must be, or return"),
        ("test_encoder:failing", "must return finite float32 \\[2, 1\\], raised ValueError: two lines$"),
        ("test_encoder:infinite", "must return finite float32 \\[2, 1\\], row 0 holds NaN or infinity$"),
        ("test_encoder:nameless", "lacks digest.*must be, or return"),
        ("test_encoder:Odd", "digest is int.*must be, or return"),
    ],
)
def test_bad_names_give_one_line(name, message, tmp_path, monkeypatch):
    (tmp_path / "own_encoder_that_raises.py").write_text("raise RuntimeError('no such luck')")
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        encoders.load_encoder(name, (1, 8, 8))
    assert "\n" not in str(caught.value)


def test_classifier_of_another_shape_is_refused(folder):
    with pytest.raises(UserError, match=r"takes samples of shape \(1, 8, 8\), not \(3, 8, 8\)"):
        encoders.load_encoder("classifier", (3, 8, 8), classifier=folder)


class Mean:
    name, dim = "mean", 1
    digest: Any = "0" * 64

    def __init__(self, shape, device):
        self.shape = shape

    def __call__(self, samples):
        return samples.reshape(len(samples), -1).mean(1, keepdims=True).astype(np.float32)


class Wrong(Mean):
    dim = 7

    def __call__(self, samples):
        return samples.reshape(len(samples), -1).mean(1, keepdims=True)


class Failing(Mean):
    def __call__(self, samples: Samples) -> np.ndarray:
        raise ValueError("two\nlines")


def leaving(shape, device):
    sys.exit(0)


class Infinite(Mean):
    def __call__(self, samples: Samples) -> np.ndarray:
        return np.full((len(samples), 1), np.inf, np.float32)


class Later(Mean):
    """Answers two samples as it must, and others not."""

    def __call__(self, samples):
        return super().__call__(samples)[: 2 if len(samples) != 3 else 1]


class Nameless:
    dim = 1

    def __call__(self, samples):
        return samples.reshape(len(samples), -1).mean(1, keepdims=True).astype(np.float32)


class Odd(Mean):
    digest = 7


class Halved(Mean):
    resize = "halved"


def halved(shape, device):
    return Halved(shape, device)


def failing_factory(shape, device):
    return 1 / 0


mean = Mean((1, 8, 8), None)
infinite = Infinite((1, 8, 8), None)
wrong = Wrong((1, 8, 8), None)
failing = Failing((1, 8, 8), None)
nameless = Nameless()


@pytest.mark.parametrize("name", ["test_encoder:mean", "test_encoder:Mean"])
def test_own_encoder_is_an_object_or_a_factory(name):
    assert np.allclose(encoders.load_encoder(name, (1, 8, 8))(IMAGES)[:, 0], IMAGES.mean((1, 2, 3)), rtol=1e-5)


def test_an_own_encoder_has_the_name_it_is_configured_by_and_every_answer_is_checked():
    encoder = encoders.load_encoder("test_encoder:Later", (1, 8, 8))
    assert encoder.name == "test_encoder:Later"
    with pytest.raises(UserError, match=r"Later: for 3 samples .*float32 \[3, 1\], got float32 \[1, 1\]$"):
        encoder(IMAGES[:3])
