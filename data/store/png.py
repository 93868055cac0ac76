"""PNG images: writes many at a time, and reads its own files back fast.

On small images Pillow spends most of its time outside the compression and holds Python's global lock meanwhile. This
module filters the rows of all images at once. zlib, which releases the lock, then compresses them on several threads.

Each image uses one of the filters None, Sub and Up (PNG specification, section 9) for all of its rows: the filter with
the smallest sum of absolute differences. `decode` can undo each of these filters for a whole image at once. Other
readers see ordinary PNG files.

N images, C channels, H height, W width.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 1  # level 6 makes 32 x 32 photographs about 7 % smaller, and would take most of the time of writing a shard
END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
BLOCK = 2**22  # bytes of pixels that are filtered at once


def encode(images: NDArray[np.uint8], threads: int = 1) -> list[bytes]:
    """uint8 [N, C, H, W] with C = 1 (grey) or 3 (RGB) -> N PNG files. Only the pixels and zlib decide the bytes."""
    n, channels, height, width = images.shape
    assert channels in (1, 3)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0))
    step = max(1, BLOCK // max(1, channels * height * width))

    def finish(piece: NDArray[np.uint8]) -> list[bytes]:
        return [SIGNATURE + header + _chunk(b"IDAT", zlib.compress(image, LEVEL)) + END for image in piece]

    out: list[bytes] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, n, step):
            rows = _filter(images[start : start + step].transpose(0, 2, 3, 1))
            out += itertools.chain.from_iterable(pool.map(finish, np.array_split(rows, threads)))
    return out


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return b"".join(
        (struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", zlib.crc32(payload, zlib.crc32(kind))))
    )


def _filter(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C] -> filtered rows, uint8 [N, H, 1 + W C]. Each row begins with the number of its filter."""
    n, height, width, channels = pixels.shape
    best = np.empty((n, height, 1 + width * channels), np.uint8)
    best[:, :, 0] = 0
    best[:, :, 1:] = pixels.reshape(n, height, -1)
    sub = pixels.copy()
    sub[:, :, 1:] -= pixels[:, :, :-1]
    up = pixels.copy()
    up[:, 1:] -= pixels[:, :-1]
    cost = _cost(best[:, :, 1:].reshape(n, -1))
    for number, rows in ((1, sub), (2, up)):
        here = _cost(rows.reshape(n, -1))
        better = here < cost
        best[better, :, 0] = number
        best[better, :, 1:] = rows[better].reshape(-1, height, width * channels)
        cost = np.minimum(cost, here)
    return best


def _cost(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum of absolute values, bytes taken as signed: int64 [N]."""
    cost: NDArray[np.int64] = np.minimum(rows, 0 - rows).sum(1, dtype=np.int64)
    return cost


def decode(payload: bytes) -> NDArray[np.uint8] | None:
    """A PNG file that `encode` wrote -> uint8 [C, H, W]. None for any other file, which the caller reads by Pillow.

    Raises ValueError, or zlib.error, when the file is damaged.
    """
    if len(payload) < 57 or payload[:16] != SIGNATURE + b"\0\0\0\x0dIHDR" or payload[37:41] != b"IDAT":
        return None
    width, height, depth, color, *others = struct.unpack_from(">IIBBBBB", payload, 16)
    (size,) = struct.unpack_from(">I", payload, 33)
    if depth != 8 or color not in (0, 2) or any(others) or len(payload) != 57 + size or payload[-12:] != END:
        return None
    crc = struct.unpack_from(">I", payload, 41 + size)[0]
    if zlib.crc32(memoryview(payload)[12:29]) != struct.unpack_from(">I", payload, 29)[0]:
        raise ValueError("damaged PNG header")
    if zlib.crc32(memoryview(payload)[37 : 41 + size]) != crc:
        raise ValueError("damaged PNG data")
    channels = 1 if color == 0 else 3
    raw = np.frombuffer(zlib.decompress(memoryview(payload)[41 : 41 + size]), np.uint8)
    if raw.size != height * (1 + width * channels):
        raise ValueError("PNG data of the wrong length")
    raw = raw.reshape(height, 1 + width * channels)
    number = int(raw[0, 0])
    if number > 2 or (raw[:, 0] != number).any():
        return None
    pixels = raw[:, 1:].reshape(height, width, channels)
    if number:
        pixels = np.add.accumulate(pixels, axis=2 - number, dtype=np.uint8)
    return pixels.transpose(2, 0, 1)


def threads_here() -> int:
    """Number of threads for encoding: the number of cores this process may run on, at most 4."""
    return min(4, len(os.sched_getaffinity(0)))
