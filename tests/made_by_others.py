"""Sources as other programs make them, of the same 50 small photographs, and the ids of some rows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings

N = 50
IMAGES = np.random.default_rng(5).integers(0, 256, (N, 3, 6, 6), dtype=np.uint8)
LABELS = np.arange(N) % 4
KINDS = ("folder", "tars", "npz", "sealed")


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(out, "png")
    return out.getvalue()


def make(kind: str, folder: Path) -> Path:
    """A source of this kind below `folder`, and its path."""
    path = folder / kind
    if kind == "folder":
        path.mkdir()
        for i, image in enumerate(IMAGES):
            (path / f"{i:03d}.png").write_bytes(png(image))
    elif kind == "tars":
        path.mkdir()
        for number, rows in enumerate(np.array_split(np.arange(N), 3)):
            with webdataset.TarWriter(str(path / f"generated-{number:04d}.tar")) as writer:
                for row in rows:
                    writer.write({"__key__": f"{row:06d}", "png": png(IMAGES[row]), "cls": str(LABELS[row])})
    elif kind == "npz":
        path = folder / "samples.npz"
        np.savez(path, arr_0=IMAGES.transpose(0, 2, 3, 1), arr_1=LABELS)
    else:
        import_dataset(str(make("npz", folder)), path, Settings(shard_size=20))
    return path
