"""Speed of data input against the plainest code for the same work: one table, and JSON with `--out`.

    python benchmarks/data.py [--rounds 5] [--gigabytes 10] [--out data.json]

Every row compares two ways in one process, alternating round after round; a ratio is the median over rounds. Images are
patches of scikit-learn's two photographs.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images

from entroloop.data.sources import importer
from entroloop.data.sources.settings import Settings
from entroloop.data.store import png, shards
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.manifest import FileEntry, entry, seal
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.data.streams.order import Order
from entroloop.data.streams.resident import Resident
from entroloop.data.streams.streaming import Streaming


def photographs(count: int, side: int) -> np.ndarray:
    """uint8 [count, 3, side, side]: patches of two photographs at several scales."""
    random = np.random.default_rng(0)
    sources = [
        np.asarray(Image.fromarray(image).resize((image.shape[1] // s, image.shape[0] // s), Image.Resampling.LANCZOS))
        for image in load_sample_images().images
        for s in (1, 2, 4)
        if min(image.shape[:2]) // s >= side
    ]
    out = np.empty((count, 3, side, side), np.uint8)
    for i in range(count):
        image = sources[random.integers(len(sources))]
        y, x = (random.integers(n - side + 1) for n in image.shape[:2])
        out[i] = image[y : y + side, x : x + side].transpose(2, 0, 1)
    return out


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, goal: float, count: int, ours: Callable[[], object], plain: Callable[[], object], rounds: int):
    """A row: images per second of both, and the median of their ratio over rounds. A first round is not counted."""
    ours(), plain()
    pairs = [(seconds(ours), seconds(plain)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    return {
        "what": name,
        "ours_per_s": round(count / statistics.median(a for a, _ in pairs)),
        "plain_per_s": round(count / statistics.median(b for _, b in pairs)),
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "goal": goal,
    }


def make_set(folder: Path, images: np.ndarray, size: int = 1000) -> Dataset:
    for number, start in enumerate(range(0, len(images), size)):
        part = images[start : start + size]
        write_shard(
            folder, number, part, np.arange(len(part)), Provenance.sampled(0, 0, len(part)), first_key=start
        )  # fmt: skip
    seal_dataset(folder)
    return Dataset(folder)


def resident_row(images: np.ndarray, folder: Path, rounds: int):
    data = Resident(make_set(folder, images))
    batch, until = 128, 20 * len(images)

    def ours() -> None:
        for _ in data.batches(seed=0, seen=0, until=until, batch=batch):
            pass

    labels = data.labels
    assert labels is not None

    def plain() -> None:
        for epoch in range(20):
            rows = torch.from_numpy(Order(len(data), epoch).epoch(0))
            for start in range(0, len(data), batch):
                data.samples[rows[start : start + batch]], labels[rows[start : start + batch]]

    return compare("resident batches / indexing a tensor", 0.9, until, ours, plain, rounds)


def read_with_tarfile(paths: list[str]) -> None:
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                if member.name.endswith(".png"):
                    np.asarray(Image.open(file))
                else:
                    int(file.read())


def streaming_rows(folder: Path, rounds: int, cores: int):
    dataset = Dataset(folder)
    paths = [str(folder / name) for name in dataset.shard_names]
    for workers in (0, cores):
        stream = Streaming(dataset, workers=workers)

        def ours(stream: Streaming = stream) -> None:
            for _ in stream.batches(seed=0, seen=0, until=len(dataset), batch=125):
                pass

        if workers:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:

                def plain(pool=pool, workers: int = workers) -> None:
                    pool.map(read_with_tarfile, [paths[i::workers] for i in range(workers)], chunksize=1)

                name = f"streaming, {workers} workers / tarfile + PIL in {workers} processes"
                yield compare(name, 1.0, len(dataset), ours, plain, rounds)
        else:
            name = "streaming, in process / tarfile + PIL"
            yield compare(name, 1.0, len(dataset), ours, lambda: read_with_tarfile(paths), rounds)


def writing_row(images: np.ndarray, folder: Path, rounds: int, threads: int):
    labels, provenance = np.arange(len(images)) % 10, Provenance.sampled(0, 0, len(images))
    png.threads_here = lambda: threads

    def ours() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        write_shard(folder, 0, images, labels, provenance, first_key=0)

    def plain() -> None:
        folder.mkdir(exist_ok=True)
        with webdataset.TarWriter(str(folder / "plain.tar")) as tar:
            for i, image in enumerate(images):
                out = io.BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(out, "PNG", compress_level=png.LEVEL)
                tar.write({"__key__": f"{i:09d}", "png": out.getvalue(), "cls": int(labels[i])})

    name = f"writing shards, {threads} thread{'s' * (threads > 1)} / webdataset TarWriter + PIL"
    return compare(name, 1.5, len(images), ours, plain, rounds)


def import_row(folder: Path, rounds: int, count: int = 24):
    source, dest = folder / "source", folder / "dest"
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i, image in enumerate(photographs(count, 400)):
        large = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((1024, 1024), Image.Resampling.LANCZOS))
        noisy = large.astype(int) + random.integers(-4, 5, large.shape)  # FFHQ's PNGs take 1.3 MB; these about 2
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(source / f"{i:05d}.png")

    def ours() -> None:
        shutil.rmtree(dest, ignore_errors=True)
        importer.import_dataset(str(source), dest, Settings(resolution=64))

    def plain() -> None:
        for path in sorted(source.iterdir()):
            Image.open(path).resize((64, 64), Image.Resampling.BOX)

    return compare("import of 1024 px PNGs to 64 px / PIL open + resize, one process", 0.9, count, ours, plain, rounds)


def resident_set_mib(pids: list[int]) -> float:
    """Private memory of processes in MiB: pages shared with their parent count once, in the parent."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss:",)):
                total += int(line.split()[1])
    return total / 1024


def memory_row(folder: Path, gigabytes: float, workers: int):
    """Streams once over a large set. Its shards are one file under many names, so the set needs little disk space."""
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 128, 128), dtype=np.uint8)
    write_shard(folder, 0, images, None, Provenance.sampled(0, 0, 200), first_key=0, encoding="npy")
    tar, side = (entry(folder, f"shard-000000.{suffix}") for suffix in ("tar", "json"))
    copies = max(2, int(gigabytes * 2**30 / tar.bytes))
    entries = []
    for i in range(copies):
        for one in (tar, side):
            name = f"shard-{i:06d}{Path(one.name).suffix}"
            if i:
                os.link(folder / one.name, folder / name)
            entries.append(FileEntry(name=name, bytes=one.bytes, sha256=one.sha256))
    facts = [{"name": shards.shard_name(i), "count": 200, "content_sha256": ""} for i in range(copies)]
    about = {"shape": [3, 128, 128], "dtype": "uint8", "labelled": False, "shards": facts}
    seal(folder, "images", 200 * copies, entries, about=about)
    dataset = Dataset(folder)
    start, peak = resident_set_mib([os.getpid()]), 0.0
    for number, _ in enumerate(
        Streaming(dataset, workers=workers).batches(seed=0, seen=0, until=len(dataset), batch=100)
    ):
        if number % 20 == 0:
            peak = max(
                peak, resident_set_mib([os.getpid(), *(c.pid for c in multiprocessing.active_children() if c.pid)])
            )
    return {
        "what": f"memory of streaming over {copies * tar.bytes / 2**30:.1f} GiB, {workers} workers, above start, MiB",
        "mib": round(peak - start, 1),
        "goal": 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    images = photographs(4000, 32)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.append(resident_row(images, folder / "set", options.rounds))
        rows += streaming_rows(folder / "set", options.rounds, cores)
        rows += [
            writing_row(images[:2000], folder / "write", options.rounds, threads) for threads in sorted({1, cores})
        ]
        rows.append(import_row(folder / "import", options.rounds))
        rows.append(memory_row(folder / "memory", options.gigabytes, cores))
    print(f"{'what':<78} {'ours/s':>9} {'plain/s':>9} {'ratio':>7}  {'range':<13} goal")
    for row in rows:
        if "ratio" in row:
            spread = f"{row['lowest']:.2f} - {row['highest']:.2f}"
            rates = f"{row['ours_per_s']:>9,} {row['plain_per_s']:>9,}"
            print(f"{row['what']:<78} {rates} {row['ratio']:>7.2f}  {spread:<13} >= {row['goal']}")
        else:
            print(f"{row['what']:<78} {'':>9} {'':>9} {row['mib']:>7.0f}  {'':<13} <= {row['goal']}")
    facts = {"cores": cores, "python": platform.python_version(), "torch": torch.__version__, "load": os.getloadavg()}
    if options.out:
        options.out.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
