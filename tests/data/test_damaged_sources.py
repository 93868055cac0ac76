"""Files of every kind with changed, lost and added bytes are imported, or refused in one line."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from damaging import damaged
from test_images import CASES, FORMATS
from test_images import sample as picture_of
from test_images import saved as encoded
from test_listing import Item, build_tar, build_zip, picture
from test_recognise import archive, cifar_files

from entroloop.data.errors import UserError
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings

pytestmark = pytest.mark.slow

LONG = "ENTROLOOP_LONG" in os.environ


def whole(folder: Path) -> dict[str, bytes]:
    """One file of every kind that can be imported."""
    items = [Item("0.png", "file"), Item("d/a.png", "file"), Item("d/x.png", "link"), Item("r.txt", "file")]
    build_zip(folder / "a.zip", items)
    build_tar(folder / "a.tar", [*items, Item("h.png", "hard")])
    archive(folder / "w.tar", {"0.png": picture(), "0.cls": b"1", "1.png": picture(3), "1.cls": b"2"})
    for kind in ("cifar-10-python", "cifar-100-binary"):
        archive(folder / f"{kind}.tar.gz", cifar_files(kind)[0], "w:gz")
    np.savez(folder / "a.npz", x=np.zeros((3, 4, 4), np.uint8), y=np.arange(3))
    np.save(folder / "a.npy", np.zeros((3, 4), np.float32))
    np.save(folder / "b.npy", np.zeros((3, 4, 4), np.uint8))
    idx = b"\0\0\x08\x03" + np.array([2, 3, 3], ">u4").tobytes() + bytes(range(18))
    (folder / "a.idx3").write_bytes(idx)
    (folder / "b.idx3.gz").write_bytes(gzip.compress(idx))
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return found
    out = io.BytesIO()
    pq.write_table(pa.table({"image": [picture(), picture(4)], "label": [0, 1]}), out)
    return {**found, "a.parquet": out.getvalue()}


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_every_kind_are_imported_or_refused_in_one_line(tmp_path: Path):
    (tmp_path / "whole").mkdir()
    sources = sorted(whole(tmp_path / "whole").items())
    images = [encoded(picture_of(mode), name, **FORMATS[name][1]) for name, mode in CASES]
    seed = int(os.environ.get("ENTROLOOP_FUZZ_SEED", "0"))
    draw = random.Random(seed)
    end, most = time.monotonic() + 90, 4000 if LONG else 100
    for number in itertools.takewhile(lambda n: n < most and time.monotonic() < end, itertools.count()):
        path = tmp_path / f"{number}"
        if draw.random() < 0.5:
            name, raw = draw.choice(sources)
            path = path.with_name(f"{number}-{name}")
            path.write_bytes(damaged(raw, draw))
        else:
            path.mkdir()
            (path / "0.png").write_bytes(damaged(draw.choice(images), draw))
        try:
            import_dataset(str(path), tmp_path / f"{number}-out", Settings(labels=draw.random() < 0.8))
        except UserError as error:
            text = str(error)
            if "\n" in text or "object at 0x" in text:
                pytest.fail(f"seed {seed}, file {number}: {text!r}")
        except Exception as error:
            raise AssertionError(f"seed {seed}, {path}: not told in one line") from error


def test_samples_without_numbers_are_refused(tmp_path: Path):
    """An IDX header may name a width of 0; the bytes per sample were divided by."""
    path = tmp_path / "a.idx3"
    path.write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, 4, 8, 0))
    with pytest.raises(UserError, match=r"a\.idx3.*hold no numbers"):
        import_dataset(str(path), tmp_path / "out")
