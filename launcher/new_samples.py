"""Files of new samples: a grid, a folder of images, or arrays.

samples, labels  ->  write  ->  x.png | FOLDER/000000.png … | x.npz with `samples` and `labels`
"""

from __future__ import annotations

import math
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.store import png

if TYPE_CHECKING:
    from entroloop.launcher.api import Drawn


def check_out(out: Path, shape: tuple[int, ...]) -> None:
    """Raises UserError, before anything is drawn, when samples of this shape cannot be written there."""
    kind = out.suffix.lower()
    if kind not in (".png", ".npz", ""):
        raise UserError(f"--out {out}: give a .png (grid), a .npz (arrays) or a folder without a suffix")
    if kind != ".npz" and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise UserError(f"--out {out}: samples of shape {list(shape)} are no pictures: give a .npz file")
    if kind and out.is_dir():
        raise UserError(f"--out {out}: is a folder: give a file, or a name without {kind}")
    if not kind and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is no empty folder: choose another name")


def write(drawn: Drawn, out: Path) -> None:
    """Writes the samples in the form that the ending of `out` names. `out` is then whole or absent."""
    kind = out.suffix.lower()
    if kind == ".png":
        files.put(out, png.encode(grid(drawn.samples)[None])[0])
        return
    if kind == ".npz":
        labels = {} if drawn.labels is None else {"labels": drawn.labels}
        files.replace(out, lambda file: np.savez(file, samples=drawn.samples, **labels))  # type: ignore[arg-type]
        return
    part = out.with_name(f"{files.TEMPORARY}{uuid.uuid4().hex[:12]}-{out.name}")
    try:
        for number, image in enumerate(png.encode(drawn.samples)):
            files.put(part / f"{number:06d}.png", image)
        os.rename(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def grid(images: NDArray[np.uint8], gap: int = 2) -> NDArray[np.uint8]:
    """Images [N, C, H, W] side by side, row by row, with white gaps: [C, H', W'], about as wide as high."""
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n * height / width))
    rows = math.ceil(n / columns)
    out = np.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = (number // columns) * (height + gap), (number % columns) * (width + gap)
        out[:, y : y + height, x : x + width] = image
    return out
