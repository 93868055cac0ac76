from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from present import present
from sklearn.datasets import load_sample_images

from entroloop.data.store import png

PHOTO = load_sample_images().images[0][:64, :64].transpose(2, 0, 1)


def by_pillow(payload: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(payload)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def filters(payload: bytes) -> set[int]:
    width = int.from_bytes(payload[16:20], "big") * (3 if payload[25] == 2 else 1)
    raw = zlib.decompress(payload[41:-16])
    return set(raw[:: width + 1])


ROWS = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8), (3, 32, 32))
NOISE = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "number"), [(ROWS, 2), (ROWS.transpose(0, 2, 1), 1), (np.zeros((1, 5, 5), np.uint8), 0)]
)
def test_the_filter_that_leaves_least_is_used_and_undone(image, number):
    (payload,) = png.encode(image[None])
    assert filters(payload) == {number}
    assert np.array_equal(present(png.decode(payload)), image)
    assert np.array_equal(by_pillow(payload), image)


def test_photographs_are_about_as_small_as_pillows():
    (ours,) = png.encode(PHOTO[None])
    out = io.BytesIO()
    Image.fromarray(PHOTO.transpose(1, 2, 0)).save(out, "PNG", compress_level=png.LEVEL)
    assert len(ours) < 1.1 * len(out.getvalue())


def test_bytes_do_not_depend_on_threads_or_neighbours(monkeypatch):
    images = np.stack([ROWS, NOISE, PHOTO[:, :32, :32], NOISE[::-1], ROWS[:, ::-1]])
    alone = [png.encode(image[None])[0] for image in images]
    assert png.encode(images, 1) == png.encode(images, 3) == alone
    monkeypatch.setattr(png, "BLOCK", 3 * 32 * 32 * 2)
    assert png.encode(images, 2) == alone


def test_files_of_others_are_left_to_pillow():
    for mode, kwargs in (("RGB", {}), ("RGBA", {}), ("P", {}), ("RGB", {"interlace": 1}), ("1", {}), ("I;16", {})):
        image = Image.fromarray(PHOTO.transpose(1, 2, 0)).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256)
        out = io.BytesIO()
        image.save(out, "PNG", **kwargs)
        assert png.decode(out.getvalue()) is None
    assert png.decode(b"") is None
    assert png.decode(b"x" * 100) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_gives_other_pixels(at, flip):
    (payload,) = png.encode(ROWS[None])
    raw = bytearray(payload)
    raw[at % len(raw)] ^= flip
    try:
        found = png.decode(bytes(raw))
        if found is None:
            found = by_pillow(bytes(raw))
    except (ValueError, OSError, SyntaxError, zlib.error):
        return
    # Pillow does not mind what follows the pixels.
    assert np.array_equal(found, ROWS)


def test_cut_files_are_noticed():
    (payload,) = png.encode(NOISE[None])
    for keep in range(0, len(payload) - 12, 97):
        assert png.decode(payload[:keep]) is None
        with pytest.raises((OSError, SyntaxError)):
            by_pillow(payload[:keep])
