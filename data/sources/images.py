"""One image as somebody stored it -> pixels of the shape a data set wants.

    bytes  ->  open_image  ->  convert  ->  uint8 [C, R, R]

C channels (1 grey, 3 RGB), H height, W width, R the resolution asked for.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Channels = Literal[1, 3]
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
#: What Pillow raises on files that are no images, cut short or damaged.
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_image(payload: bytes) -> Image.Image:
    """Reads the header; pixels are decoded when they are asked for. Raises one of DAMAGED."""
    try:
        image = Image.open(io.BytesIO(payload))
    except UnidentifiedImageError as error:  # whose own text is an address in memory
        raise ValueError("of no known format") from error
    if image.mode == "F":
        raise ValueError("holds floating-point pixels: save it with 8 or 16 bits")
    return image


def channels_of(image: Image.Image) -> Channels:
    """1 for greyscale modes (with or without alpha, 8 or 16 bits), 3 for all others."""
    return 1 if image.mode in GREY_MODES else 3


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the rotation that a camera noted in the file."""
    turned = image.format == "JPEG" and image.getexif().get(0x0112, 1) >= 5
    return (image.height, image.width) if turned else image.size


def convert(image: Image.Image, channels: Channels, resolution: int | None) -> NDArray[np.uint8]:
    """Turns upright, converts to 8-bit grey or RGB, crops the central square and resizes: uint8 [C, R, R].

    Transparent parts become white; 16 bits are rounded to 8. Without a resolution the size stays: uint8 [C, H, W].
    """
    if image.format == "JPEG":
        image = ImageOps.exif_transpose(image)
    image = _to_mode(image, "L" if channels == 1 else "RGB")
    pixels: NDArray[np.uint8] = np.asarray(image if resolution is None else square(image, resolution))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("holds pixels of more than 16 bits")
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert(mode)
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid)
    return image.convert(mode)


def square(image: Image.Image, resolution: int) -> Image.Image:
    """The central square at R x R pixels: box filter for a whole factor (the mean of each block), Lanczos otherwise."""
    side = min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side == resolution:
        return image
    if side > resolution and side % resolution == 0:
        # One rounding of the exact mean; `resize` with BOX rounds after each axis and is off by one in 7 % of pixels.
        return image.reduce(side // resolution)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)


def from_array(array: NDArray[Any]) -> Image.Image:
    """uint8 [C, H, W] -> image."""
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
