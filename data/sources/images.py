"""Converts one encoded image of any kind to the pixels that a data set needs.

    bytes  ->  open_image  ->  convert  ->  uint8 [C, R, R]

C channels (1 grey, 3 RGB), H height, W width, R requested resolution.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

Channels = Literal[1, 3]
Filter = Literal["auto", "box", "lanczos"]
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
# Pillow refuses a PNG with a text chunk above 1 MB, but photo editors write such chunks. Allow 64 MB, Pillow's bound on
# the sum of all chunks.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def open_image(payload: bytes) -> Image.Image:
    """Reads the header. Pillow decodes the pixels when they are first needed. Any error means damage."""
    image = Image.open(io.BytesIO(payload))
    if image.mode == "F":
        raise ValueError("holds floating-point pixels: save it with 8 or 16 bits")
    return image


def channels_of(image: Image.Image) -> Channels:
    """1 for greyscale modes (with or without alpha, 8 or 16 bits), 3 for all others."""
    return 1 if image.mode in GREY_MODES or _stored_as(image) == "LA;16B" else 3


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the rotation that a camera noted in the file."""
    # Pillow itself applies the rotation to the size of a TIFF.
    turned = image.width != image.height and image.format != "TIFF" and _orientation(image) >= 5
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    """EXIF orientation from 1 (upright) to 8. As in image viewers, damaged EXIF data mean 1."""
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # the chunk may follow the pixels
    with contextlib.suppress(Exception):
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def convert(
    image: Image.Image, channels: Channels, resolution: int | None, filter: Filter = "auto"
) -> NDArray[np.uint8]:
    """Turns an image upright, converts it to 8-bit grey or RGB, crops the central square and resizes: uint8 [C, R, R].

    Transparent parts become white. Values of more than 8 bits are rounded. Without a resolution the image is neither
    cropped nor resized: uint8 [C, H, W].
    """
    image = _eight_bits(image)
    with contextlib.suppress(Exception):  # damaged EXIF data
        ImageOps.exif_transpose(image, in_place=True)
    image = _to_mode(image, "L" if channels == 1 else "RGB")
    pixels: NDArray[np.uint8] = np.asarray(image if resolution is None else square(image, resolution, filter))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid)
    if image.mode == "LAB":  # Pillow cannot convert LAB to grey directly
        image = image.convert("RGB")
    return image.convert(mode)


def _stored_as(image: Image.Image) -> str:
    """The mode of the pixels in the file, by Pillow's name, such as `RGB;16B`. The image must not be loaded yet."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str(args if isinstance(args, str) or not args else args[0])


def _eight_bits(image: Image.Image) -> Image.Image:
    """The loaded image with 8 bits per channel, rounded."""
    stored = _stored_as(image)
    bands, wide, order = stored.partition(";16")
    if wide and image.mode in ("RGB", "RGBA", "CMYK"):
        return _sixteen_bits(image, bands, {"N": sys.byteorder[0].upper()}.get(order, order))
    image.load()
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        top = 4095 if stored == "I;12" else 65535
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > top:
            raise ValueError("holds pixels of more than 16 bits")
        opaque = None if transparent is None else values != transparent
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0:  # white is zero
            values = top - values
        return _rounded(values[..., None], top, "L", opaque, image)
    if stored in ("L;2", "L;4") and transparent is not None:  # Pillow scales the pixels, but not the transparent value
        image.info["transparency"] = transparent * (85 if stored == "L;2" else 17)
    return image


def _sixteen_bits(image: Image.Image, bands: str, order: str) -> Image.Image:
    """An image of 16 bits per channel, rounded to 8 bits.

    Pillow keeps only the first of each channel's two bytes. A second reading in the other byte order gives the other
    byte.
    """
    source: io.BytesIO = cast("Any", image).fp

    def decoded(raw: str) -> Image.Image:
        again: Any = Image.open(io.BytesIO(source.getvalue()))
        for i, tile in enumerate(again.tile):
            again.tile[i] = tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        again.load()
        return cast("Image.Image", again)

    if bands == "LA":  # four bytes per pixel
        first = decoded("RGBA")
        pairs = np.asarray(first).astype(np.int64)
        values = pairs[..., ::2] * 256 + pairs[..., 1::2]
    else:
        raw = bands.upper() if bands == "RGBa" else bands
        first, second = decoded(f"{raw};16{order}"), decoded(f"{raw};16{'L' if order == 'B' else 'B'}")
        values = np.asarray(first).astype(np.int64) * 256 + np.asarray(second)
    transparent = image.info.get("transparency")
    opaque = None if transparent is None else (values != np.array(transparent)).any(-1)
    return _rounded(values, 65535, {"RGBX": "RGB"}.get(bands, bands), opaque, first)


def _rounded(values: NDArray[np.int64], top: int, mode: str, opaque: Any, like: Image.Image) -> Image.Image:
    """Integers [H, W, C] from 0 to `top` -> an image of 8 bits per channel, with the metadata of the image `like`.

    opaque  bool [H, W]: the pixels that are not transparent; None if all are opaque
    """
    pixels = ((values * 255 + top // 2) // top).astype(np.uint8)
    if opaque is not None:
        pixels, mode = np.dstack([pixels, opaque.astype(np.uint8) * 255]), mode + "A"
    size = (pixels.shape[1], pixels.shape[0])
    image = Image.frombytes(mode, size, pixels.tobytes())
    image.info = {key: value for key, value in like.info.items() if key != "transparency"}
    return image


def square(image: Image.Image, resolution: int, filter: Filter = "auto") -> Image.Image:
    """The central square at R x R pixels.

    filter  `box`: the mean of the area; `lanczos`; `auto`: box if the factor is a whole number, else Lanczos
    """
    side = min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side == resolution:
        return image
    if filter != "lanczos" and side > resolution and side % resolution == 0:
        # `reduce` rounds the exact mean once. `resize` with BOX rounds after each axis: 7 % of pixels are off by one.
        return image.reduce(side // resolution)
    kind = Image.Resampling.BOX if filter == "box" else Image.Resampling.LANCZOS
    return image.resize((resolution, resolution), kind)


def from_array(array: NDArray[Any]) -> Image.Image:
    """uint8 [C, H, W] -> image."""
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
