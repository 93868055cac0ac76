"""`measure` of sets that are several times as large as the memory that it may use."""

import json
import re
import resource
from pathlib import Path

import forked
import numpy as np
import pytest

from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings
from entroloop.launcher.__main__ import main

SHAPE, COUNT = (3, 128, 128), 6000
ROOM = 360 << 20  # bytes, of which measures need most for a block of a fixed size


class _Corners:
    dim, digest = 6, "0" * 64

    def __call__(self, samples):
        return samples[:, :, :4, :8].reshape(len(samples), -1, 16).mean(2).astype(np.float32)


corners = _Corners()


def limited(work, *arguments):
    """Calls `work`, which may allocate ROOM bytes. Mapped files are not counted, as their pages can be dropped."""
    found = re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    most = int(found[1]) * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    work(*arguments)


def read(*paths):
    return [np.load(path) for path in paths]


@pytest.mark.long
def test_sets_larger_than_memory_are_measured(tmp_path):
    """Four sets of 281 MiB each, three times what may be allocated in all, as arrays and as shards."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "training", "reference"):
        images = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, (COUNT, *SHAPE))
        for start in range(0, COUNT, 100):
            images[start : start + 100] = rng.integers(0, 256, (100, *SHAPE), dtype=np.uint8)
        del images
    import_dataset(str(tmp_path / "training.npy"), tmp_path / "shards", Settings(encoding="npy", shard_size=100))
    assert "MemoryError" in forked.Forked(limited, read, tmp_path / "a.npy", tmp_path / "b.npy").result().stderr
    words = ["measure", tmp_path / "a.npy", tmp_path / "b.npy", "--training", tmp_path / "shards", "--reference"]
    words += [tmp_path / "reference.npy", "--encoder", "test_large_sets:corners", "--json"]
    done = forked.Forked(limited, main, list(map(str, words)), PYTHONPATH=str(Path(__file__).parent)).result()
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["sets"]
    assert [row["context"]["n_generated"] for row in rows.values()] == [COUNT, COUNT]
