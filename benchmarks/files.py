"""Features of many small images in tars, and chosen images as shards: CPU seconds, ratios and memory.

    python benchmarks/files.py [--count 100000] [--rounds 3] [--out files.json]

The images are patches of scikit-learn's two photographs, 32 x 32, in tars that webdataset wrote. Every measurement runs
in a process of its own, so its memory is its own.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import re
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from data import photographs
from entroloop.data.encode import encode
from entroloop.data.seeds import Part
from entroloop.data.sources.settings import Settings
from entroloop.data.take import take
from entroloop.launcher.run.facts import processor
from entroloop.selection import select

PER_TAR = 10_000
SIDE = 8  # pixels, to which images are resized before they are encoded
CHOSEN = 5  # one of so many images is chosen
SPAWN = multiprocessing.get_context("spawn")


def make_tars(folder: Path, count: int) -> None:
    folder.mkdir()
    images = photographs(count, 32)
    for number, start in enumerate(range(0, count, PER_TAR)):
        with webdataset.TarWriter(str(folder / f"generated-{number:05d}.tar")) as writer:
            for i, image in enumerate(images[start : start + PER_TAR], start):
                writer.write({"__key__": f"{i:08d}", "png": Image.fromarray(image.transpose(1, 2, 0))})


def plain_images(folder: Path, rows: set[int] | None = None) -> Any:
    number = 0
    for path in sorted(folder.iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                if rows is None or number in rows:
                    content = tar.extractfile(member)
                    assert content is not None
                    yield Image.open(io.BytesIO(content.read())).convert("RGB")
                number += 1


def plain_features(folder: Path, out: Path) -> None:
    """The plainest code for `encode`: one image after another, all features in memory."""
    rows = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)).ravel() for image in plain_images(folder)]
    np.save(out, np.stack(rows).astype(np.float32))


def plain_take(folder: Path, ids: Path, out: Path) -> None:
    """The plainest code for `take`: one image after another, decoded and encoded again by webdataset."""
    out.mkdir()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for i, image in enumerate(plain_images(folder, set(np.load(ids).tolist()))):
            writer.write({"__key__": f"{i:09d}", "png": image})


def our_features(folder: Path, out: Path, part: Part | None = None) -> None:
    encode(folder, out, ["pixel"], resolution=SIDE, color="rgb", part=part)


def our_take(folder: Path, ids: Path, out: Path, part: Part | None = None) -> None:
    take(folder, ids, out, settings=Settings(resolution=32, color="rgb"), part=part)


def memory(which: str) -> int:
    """KiB of this process: VmRSS now, or VmHWM at its highest."""
    found = re.search(rf"{which}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def _measured(queue: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the process that started this one
    before, start = memory("VmRSS"), time.process_time()
    work(*arguments)
    queue.put((time.process_time() - start, (memory("VmHWM") - before) / 1024))


def measured(work: Callable[..., None], *several: tuple[Any, ...]) -> tuple[float, float]:
    """Runs the work in one process per tuple of arguments, one after another. Mean CPU seconds, and the largest MiB.

    CPU seconds, because the parts of a work run at the same time on free cores only.
    """
    queue, found = SPAWN.Queue(), []
    for arguments in several:
        process = SPAWN.Process(target=_measured, args=(queue, work, arguments))
        process.start()
        found.append(queue.get())
        process.join()
    return statistics.mean(seconds for seconds, _ in found), max(memory for _, memory in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    count, chosen = options.count, options.count // CHOSEN
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        source, ids = base / "generated", base / "ids.npy"
        make_tars(source, count)

        def new(name: str) -> Path:
            shutil.rmtree(base / name, ignore_errors=True)
            return base / name

        our_features(source, base / "kept")
        features = np.concatenate([np.load(path) for path in sorted((base / "kept").glob("pixel-*.npy"))])
        start = time.perf_counter()
        np.save(ids, select(features, chosen, "greedy", seed=0).ids)
        choosing = time.perf_counter() - start
        works = {
            "encode, one process": (count, lambda: measured(our_features, (source, new("f")))),
            "encode, each of two parts": (
                count,
                lambda: measured(our_features, *((source, f, Part(i, 2)) for i, f in enumerate([new("f")] * 2))),
            ),
            "plain features": (count, lambda: measured(plain_features, (source, base / "plain.npy"))),
            "take, one process": (chosen, lambda: measured(our_take, (source, ids, new("t")))),
            "take, each of two parts": (
                chosen,
                lambda: measured(our_take, *((source, ids, t, Part(i, 2)) for i, t in enumerate([new("t")] * 2))),
            ),
            "plain take": (chosen, lambda: measured(plain_take, (source, ids, new("p")))),
        }
        rounds = [{name: work() for name, (_, work) in works.items()} for _ in range(options.rounds)]
    for name, (images, _) in works.items():
        seconds = statistics.median(one[name][0] for one in rounds)
        most = max(one[name][1] for one in rounds)
        rows.append({"what": name, "images": images, "cpu_s": round(seconds, 2), "mib": round(most)})
    print(f"{processor()}, {count:,} images of 32 x 32 in {len(range(0, count, PER_TAR))} tars: medians")
    print(f"select, greedy, {count:,} -> {chosen:,} rows of {3 * SIDE * SIDE}: {choosing:.1f} s")
    for row in rows:
        print(f"{row['what']:<25} {row['cpu_s']:>9,} CPU s {row['mib']:>7,} MiB above start")
    for what, plain in (("encode", "plain features"), ("take", "plain take")):
        names = (f"{what}, one process", f"{what}, each of two parts", plain)
        alone, both, other = ([one[name][0] for one in rounds] for name in names)
        against = statistics.median(b / a for a, b in zip(alone, other, strict=True))
        part = statistics.median(b / a for a, b in zip(alone, both, strict=True))
        print(f"{what}: {against:.2f} x plain code; a part of two needs {part:.2f} of the CPU seconds of one process")
    if options.out:
        options.out.write_text(json.dumps({"processor": processor(), "select_s": choosing, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
