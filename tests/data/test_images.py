"""Pictures are imported as a viewer shows them: as Pillow renders them, or by hand where Pillow cannot."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, features

from entroloop.data.sources.base import is_image
from entroloop.data.sources.images import Filter, channels_of, convert, open_image, square, upright_size

rng = np.random.default_rng(0)
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {  # the modes that Pillow writes, and options
    "PNG": ("1 L LA P RGB RGBA I;16", {}),
    "JPEG": ("L RGB CMYK", {"quality": 95}),
    "MPO": ("L RGB CMYK", {}),
    "WEBP": ("RGB RGBA L LA P", {"lossless": True}),
    "AVIF": ("L LA RGB RGBA P", {}),
    "JPEG2000": ("L LA RGB RGBA I;16", {}),
    "TIFF": ("1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I", {}),
    "GIF": ("1 L P RGB RGBA", {}),
    "BMP": ("1 L P RGB RGBA", {}),
    "PPM": ("1 L RGB I;16 I", {}),
}
CASES = [(name, mode) for name, (modes, _) in FORMATS.items() for mode in modes.split()]


def sample(mode: str, size: tuple[int, int] = (12, 8)) -> Image.Image:
    width, height = size
    if mode in ("I", "I;16"):
        values = rng.integers(0, 2**16, (height, width))
        return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode in ("P", "PA"):
        return image.convert("RGB").quantize(16).convert(mode)
    return image.convert("RGB").convert(mode) if mode in ("LAB", "YCbCr") else image.convert(mode)


def saved(image: Image.Image, name: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def on_white(image: Image.Image) -> np.ndarray:
    """Pillow's RGBA, composed with white in floating point: float [H, W, 3]."""
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_every_format_and_mode_is_what_pillow_renders(name: str, mode: str):
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.get(name, "zlib")):
        pytest.skip(f"this Pillow is built without {name}")
    payload = saved(sample(mode), name, **FORMATS[name][1])
    image = Image.open(io.BytesIO(payload))
    assert any(is_image(f"x{suffix}") for suffix, kind in Image.registered_extensions().items() if kind == image.format)
    if image.mode.startswith("I"):
        expected = np.rint(np.asarray(image).astype(float) * 255 / 65535)[..., None].repeat(3, 2)
    else:
        expected = on_white(image)
    found = convert(open_image(payload), 3, None).transpose(1, 2, 0)
    assert np.abs(found - expected).max() <= (0.501 if image.mode.startswith("I") else 1)
    grey = convert(open_image(payload), 1, None)[0]
    assert np.abs(grey - found @ [0.299, 0.587, 0.114]).max() <= 1
    if channels_of(open_image(payload)) == 1:
        assert np.array_equal(grey, found[..., 0])


@pytest.mark.parametrize("kind", ["1", "L", "P", "RGB", "I;16"])
@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_transparent_colour_becomes_white(name: str, kind: str):
    if name == "GIF" and kind in ("1", "RGB", "I;16"):
        pytest.skip("GIF has palettes only")
    image = Image.new(kind, (4, 4), 0)
    image.paste(1, (0, 0, 2, 4)) if kind != "RGB" else image.paste((0, 0, 1), (0, 0, 2, 4))
    transparent = {"RGB": (0, 0, 0), "1": 0}.get(kind, 0)
    payload = saved(image, name, transparency=transparent)
    found = convert(open_image(payload), 1, None)[0]
    assert (found[:, 2:] == 255).all()
    assert (found[:, :2] < 255).all() or kind == "1"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *others: tuple[bytes, bytes]) -> bytes:
    """A PNG file of raw rows, for depths that Pillow does not write."""
    stride = len(rows) // height
    data = zlib.compress(b"".join(b"\0" + rows[i * stride :][:stride] for i in range(height)))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    middle = b"".join(chunk(*other) for other in others)
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_16_bits_of_every_png_are_rounded(color: int, channels: int):
    values = rng.integers(0, 2**16, (8, 9, channels), dtype=np.uint16)
    values[0, 0] = 0x80FF  # 128.5 of 255, of which the first byte alone is 128
    values[0, 1] = 0x00FF
    payload = png(9, 8, 16, color, values.astype(">u2").tobytes())
    image = open_image(payload)
    assert channels_of(image) == (1 if channels < 3 else 3)
    found = convert(image, 3, None).transpose(1, 2, 0)
    colors = values[..., : 1 if channels < 3 else 3].astype(float)
    alpha = values[..., -1:] / 65535 if channels in (2, 4) else 1.0
    expected = (colors * alpha + 65535 * (1 - alpha)) * 255 / 65535
    assert np.abs(found - expected).max() <= (0.501 if channels in (1, 3) else 1.5)  # the alpha is rounded, too


def test_a_transparent_value_of_16_bits_is_compared_in_16_bits():
    values = np.array([[[300, 400, 500], [300, 400, 501]]], np.uint16)
    payload = png(2, 1, 16, 2, values.astype(">u2").tobytes(), (b"tRNS", values[0, 0].astype(">u2").tobytes()))
    assert convert(open_image(payload), 3, None).transpose(1, 2, 0).tolist() == [[[255] * 3, [1, 2, 2]]]
    payload = png(2, 1, 16, 0, values[..., 0].astype(">u2").tobytes(), (b"tRNS", struct.pack(">H", 300)))
    assert convert(open_image(payload), 1, None).tolist() == [[[255, 255]]]


@pytest.mark.parametrize(("depth", "row", "pixels"), [(2, 0b01100000, [255, 170]), (4, 0x5A, [255, 170])])
def test_a_transparent_value_of_few_bits_is_found(depth: int, row: int, pixels: list[int]):
    payload = png(2, 1, depth, 0, bytes([row]), (b"tRNS", struct.pack(">H", row >> (8 - depth))))
    assert convert(open_image(payload), 1, None).tolist() == [[pixels]]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bands", "photometric", "extra"), [(3, 2, None), (4, 2, 2), (4, 2, 1), (4, 5, None), (1, 1, None), (1, 0, None)]
)
def test_16_bits_of_every_tiff_are_rounded(
    compression: str, order: str, bands: int, photometric: int, extra: int | None
):
    values = rng.integers(0, 2**16, (8, 9, bands), dtype=np.uint16)
    if extra == 1:  # premultiplied: no colour above its alpha
        values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    payload = tiff(values, order, photometric, extra, compression)
    if (order, photometric) == (">", 0):  # which Pillow does not know
        with pytest.raises(OSError, match="cannot identify"):
            open_image(payload)
        return
    image = open_image(payload)
    found = convert(image, 3, None).transpose(1, 2, 0).astype(float)
    v = values / 65535
    if bands == 1:
        expected = 255 * (1 - v if photometric == 0 else v)
    elif photometric == 5:
        expected = 255 * (1 - v[..., :3]) * (1 - v[..., 3:])
    elif bands == 3:
        expected = 255 * v
    else:
        alpha = v[..., 3:]
        expected = 255 * (v[..., :3] * (1 if extra == 1 else alpha) + 1 - alpha)
    assert np.abs(found - expected).max() <= (0.501 if bands in (1, 3) else 2)


def tiff(values: np.ndarray, order: str, photometric: int, extra: int | None, compression: str) -> bytes:
    height, width, bands = values.shape
    data = values.astype(f"{order}u2").tobytes()
    if compression != "raw":
        data = zlib.compress(data)
    tags = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, [16] * bands), (259, 3, [1 if compression == "raw" else 8]),
        (262, 3, [photometric]), (273, 4, [8]), (277, 3, [bands]), (278, 3, [height]), (279, 4, [len(data)]),
    ]  # fmt: skip
    tags += [] if extra is None else [(338, 3, [extra])]
    data += b"\0" * (len(data) % 2)
    far = b""
    start = 8 + len(data)
    entries = b""
    for number, kind, items in tags:
        packed = struct.pack(f"{order}{len(items)}{'H' if kind == 3 else 'I'}", *items)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", start + 2 + 12 * len(tags) + 4 + len(far))
            far += packed
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", number, kind, len(items)) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + far


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF"])
def test_every_orientation_is_obeyed_in_every_format_that_has_one(name: str, orientation: int):
    if name in ("AVIF", "WEBP") and not features.check(name.lower()):
        pytest.skip(f"this Pillow is built without {name}")
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8, 0], pixels[:4, :, 1] = 255, 255  # each corner has its colour
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = saved(Image.fromarray(pixels), name, exif=exif, **FORMATS[name][1])
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(payload)))
    assert upright_size(open_image(payload)) == expected.size
    found = convert(open_image(payload), 3, None).transpose(1, 2, 0)
    assert np.array_equal(found, np.asarray(expected.convert("RGB")))
    turned = {
        1: pixels, 2: pixels[:, ::-1], 3: np.rot90(pixels, 2), 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).transpose(1, 0, 2), 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    assert np.abs(found.astype(int) - turned).mean() < 20


def test_orientation_after_the_pixels_of_a_png_and_damaged_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(sample("RGB"), "PNG")
    late = whole[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + whole[-12:]
    assert upright_size(open_image(late)) == (8, 12)
    assert convert(open_image(late), 3, None).shape == (3, 12, 8)
    damaged = whole[:33] + chunk(b"eXIf", b"MM junk") + whole[33:]
    assert np.array_equal(convert(open_image(damaged), 3, None), convert(open_image(whole), 3, None))


def test_photographs_with_megabytes_of_text_are_read():
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "x" * 3_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "y" * 3_000_000)
    payload = saved(sample("RGB"), "PNG", pnginfo=info)
    assert convert(open_image(payload), 3, None).shape == (3, 8, 12)


def test_filters_are_pillows():
    image = sample("RGB", (24, 24))
    filters: dict[Filter, Any] = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
    for filter, kind in filters.items():
        for side in (7, 32):
            assert square(image, side, filter).tobytes() == image.resize((side, side), kind).tobytes()
    assert square(image, 8, "lanczos").tobytes() == image.resize((8, 8), Image.Resampling.LANCZOS).tobytes()
    assert square(image, 8, "box").tobytes() == square(image, 8).tobytes() == image.reduce(3).tobytes()
    assert square(image, 7).tobytes() == square(image, 7, "lanczos").tobytes()
