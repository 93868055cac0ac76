import itertools

import made_by_others
import numpy as np
import pytest
from made_by_others import IMAGES, KINDS, N
from thread_world import on_threads

from entroloop.data import encode as module
from entroloop.data.encode import encode
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.seeds import Part
from entroloop.data.sources.row_files import open_rows
from entroloop.data.store import manifest
from entroloop.data.store.blocks import load_features
from entroloop.data.store.dataset import Dataset

PIXELS = IMAGES.reshape(N, -1).astype(np.float32)
MEAN = "test_encode:mean"


class _Mean:
    dim, digest = 1, "0" * 64

    def __call__(self, samples):
        return samples.reshape(len(samples), -1).mean(1, keepdims=True).astype(np.float32)


mean = _Mean()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "default_shard_size", lambda form: 12)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_any_source_in_its_order_whoever_shares_the_work(tmp_path, kind):
    source = made_by_others.make(kind, tmp_path)
    sealed = encode(source, tmp_path / "alone", ["pixel", MEAN])
    assert sealed is not None
    assert (sealed.kind, sealed.count, sealed.about["blocks"]) == ("features", N, 3 if kind == "sealed" else 5)
    np.testing.assert_array_equal(load_features(tmp_path / "alone", "pixel"), PIXELS)
    np.testing.assert_array_equal(open_rows(tmp_path / "alone", MEAN)[:], PIXELS.mean(1, keepdims=True))
    assert encode(source, tmp_path / "alone", ["pixel", MEAN]) == sealed, "finished work is left alone"
    for part in (Part(1, 2), Part(0, 2), None):
        encode(source, tmp_path / "parts", ["pixel", MEAN], part=part)
        assert manifest.is_sealed(tmp_path / "parts") == (part is None)
    on_threads(3, lambda world: encode(source, tmp_path / "ranks", ["pixel", MEAN], world=world))
    with pytest.raises(Interrupted):
        encode(source, tmp_path / "stopped", ["pixel", MEAN], stop=iter([False, True]).__next__)
    assert (tmp_path / "stopped" / "pixel-000000.npy").exists()
    encode(source, tmp_path / "stopped", ["pixel", MEAN])
    for name in ("parts", "ranks", "stopped"):
        assert contents(tmp_path / name) == contents(tmp_path / "alone"), name


def test_a_sealed_source_is_named_by_its_digest(tmp_path):
    source = made_by_others.make("sealed", tmp_path)
    sealed = encode(source, tmp_path / "out", ["pixel"])
    assert sealed is not None
    assert sealed.made_from == {"source": Dataset(source).manifest.digest}


def test_images_are_resized_as_an_import_does(tmp_path):
    source = made_by_others.make("tars", tmp_path)
    encode(source, tmp_path / "out", ["pixel"], resolution=3)
    halves = IMAGES.reshape(N, 3, 3, 2, 3, 2).mean((3, 5)).reshape(N, -1)
    np.testing.assert_allclose(load_features(tmp_path / "out", "pixel"), halves, atol=0.5)


def test_unfinished_and_finished_work_of_another_kind_is_refused_with_the_difference(tmp_path, monkeypatch):
    source, out = made_by_others.make("tars", tmp_path), tmp_path / "out"
    for stopped in (True, False):
        try:
            encode(source, out, [MEAN], stop=itertools.repeat(stopped).__next__)
        except Interrupted:
            assert stopped
        with pytest.raises(UserError, match="resolution None there, 4 now"):
            encode(source, out, [MEAN], resolution=4)
        with pytest.raises(UserError, match=r"encoders .*test_encode:mean.* there, .*pixel.* now"):
            encode(source, out, ["pixel"])
        with monkeypatch.context() as changed:
            changed.setattr(_Mean, "digest", "1" * 64)
            with pytest.raises(UserError, match=r"encoders .*0000.* there, .*1111.* now"):
                encode(source, out, [MEAN])
        with pytest.raises(UserError, match="source count 50 there, 16 now"):
            encode(sorted(source.iterdir())[2], out, [MEAN])
    with pytest.raises(UserError, match="sealed set that is not features"):
        encode(source, made_by_others.make("sealed", tmp_path), [MEAN])


@pytest.mark.parametrize(
    ("message", "encoders", "settings"),
    [
        ("encoder 'pixle' does not exist: did you mean pixel", ["pixle"], {}),
        ("--encoder classifier: is fitted .*give --classifier RUN/real/classifier", ["classifier"], {}),
        ("--encoder: name at least one", [], {}),
        ("--resolution 0: must be at least 1", ["pixel"], {"resolution": 0}),
        ("--split test: .* has no splits", ["pixel"], {"split": "test"}),
        ("--key x: .* no arrays", ["pixel"], {"key": "x"}),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, message, encoders, settings):
    source = made_by_others.make("tars", tmp_path)
    with pytest.raises(UserError, match=message):
        encode(source, tmp_path / "out", encoders, **settings)
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_named(tmp_path):
    source = made_by_others.make("folder", tmp_path)
    (source / "030.png").write_bytes((source / "030.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"030\.png"):
        encode(source, tmp_path / "out", ["pixel"])
    with pytest.raises(UserError, match="is inside the source"):
        encode(source, source / "out", ["pixel"])
