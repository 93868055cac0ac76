"""Files of new samples: a grid, a folder of images, or arrays.

batches of samples and labels  ->  write  ->  x.png | FOLDER/000000.png … | x.npz with `samples` and `labels`
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

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
    files.check_place(out if kind else out.with_name(f"{out.name}.png"), out)


def write(drawn: Iterator[Drawn], count: int, out: Path) -> None:
    """Writes the samples in the form that the ending of `out` names. `out` is then whole or absent.

    drawn  `count` samples in batches; a folder and arrays are written batch by batch, a grid is in memory as a whole
    """
    kind = out.suffix.lower()
    if kind == ".png":
        files.put(out, png.encode(grid(np.concatenate([batch.samples for batch in drawn]))[None])[0])
        return
    if kind == ".npz":
        files.replace(out, lambda file: _arrays(file, drawn, count))
        return
    with files.new_folder(out) as part:
        images = (image for batch in drawn for image in png.encode(batch.samples))
        for number, image in enumerate(images):
            files.put(part / f"{number:06d}.png", image)


def _arrays(file: IO[bytes], drawn: Iterator[Drawn], count: int) -> None:
    """An .npz file with `samples` and, if there are labels, `labels`."""
    labels = []
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("samples.npy", "w", force_zip64=True) as member:
            for number, (samples, own) in enumerate(drawn):
                if number == 0:
                    descr = np.lib.format.dtype_to_descr(samples.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": (count, *samples.shape[1:])}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(samples).data)
                labels += [] if own is None else [own]
        if labels:
            with archive.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, np.concatenate(labels), allow_pickle=False)


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
