"""Shards: tar files of samples that any webdataset reader can read, written once and checked when read.

    arrays  ->  write_shard  ->  shard-000000.tar + shard-000000.json  ->  seal_dataset  ->  manifest.json
    shard-000000.tar  ->  read_shard, parse_shard  ->  arrays

A sample is `<key>.png` (images) or `<key>.npy` (vectors, or images by choice) and, in labelled sets, `<key>.cls`. The
key is the sample's number in the whole set. The `.json` beside a shard is the shard's own seal. It holds checksums of
the tar's bytes and of the decoded samples, and the provenance of every sample in columns:

    generation  the generation whose model drew the sample, -1 for a real sample
    index       number of the sample among that generation's samples, or its row in the real data set
    source      name of the sample in the real source (empty for generated samples)

Three more columns locate the sample's bytes in the tar, so that single samples can be read and checked: `offset`,
`size`, `crc32`.

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from entroloop.data import files
from entroloop.data.errors import UserError, reason
from entroloop.data.store import manifest, png, tar
from entroloop.data.store.manifest import FileEntry, Manifest

REAL = -1  # the generation of a real sample
Encoding = Literal["png", "npy"]
Samples = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Provenance:
    """Where each sample of a set comes from, in columns of equal length N (see the module's docstring)."""

    generation: NDArray[np.int64]
    index: NDArray[np.int64]
    source: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: NDArray[np.int64] | slice) -> Provenance:
        numbers = np.arange(len(self))[rows]
        return Provenance(self.generation[rows], self.index[rows], tuple(self.source[i] for i in numbers))

    @staticmethod
    def concatenate(parts: Sequence[Provenance]) -> Provenance:
        return Provenance(
            np.concatenate([p.generation for p in parts]),
            np.concatenate([p.index for p in parts]),
            tuple(name for p in parts for name in p.source),
        )

    @staticmethod
    def sampled(generation: int, start: int, stop: int) -> Provenance:
        """The samples start … stop - 1 of a generation."""
        n = stop - start
        return Provenance(np.full(n, generation), np.arange(start, stop), ("",) * n)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def is_done(folder: Path, number: int) -> bool:
    """Whether a shard of a folder is complete, that is, has its `.json`, which is written last."""
    return (folder / shard_name(number)).with_suffix(".json").exists()


def write_shard(
    folder: Path,
    number: int,
    samples: Samples,
    labels: NDArray[np.int64] | None,
    provenance: Provenance,
    *,
    first_key: int,
    encoding: Encoding = "png",
) -> None:
    """Writes one shard and, last, its `.json`. A shard that is already complete does not change.

    samples  uint8 [N, C, H, W] with C = 1 or 3, or float32 [N, D]
    labels   int64 [N], or None for an unlabelled set

    The bytes depend on the arguments alone and, for PNG, on the installed zlib.
    Raises UserError when the disk is full; no part of the shard is then left.
    """
    assert len(samples) == len(provenance)
    assert labels is None or len(labels) == len(samples)
    tar_path = folder / shard_name(number)
    if is_done(folder, number):
        return
    made = manifest.add(
        folder, tar_path.name, lambda file: tar.write(file, _members(samples, labels, first_key, encoding))
    )
    if not made:  # a killed process, or another one that works on the same shard, wrote this tar: describe that tar
        samples, labels = read_shard(tar_path)
    places = [place for place in tar.places(tar_path.read_bytes()) if not place[0].endswith(".cls")]
    columns: dict[str, list[Any]] = {
        "generation": provenance.generation.tolist(),
        "index": provenance.index.tolist(),
        "source": list(provenance.source),
        "offset": [place[1] for place in places],
        "size": [place[2] for place in places],
        "crc32": [place[3] for place in places],
    }
    if labels is not None:
        columns["label"] = labels.tolist()
    side = {
        "count": len(samples),
        "bytes": tar_path.stat().st_size,
        "sha256": files.sha256(tar_path),
        "content_sha256": content_sha256(samples, labels),
        "shape": list(samples.shape[1:]),
        "dtype": str(samples.dtype),
        "labelled": labels is not None,
        "columns": columns,
    }
    text = json.dumps(side, sort_keys=True).encode() + b"\n"
    manifest.put(folder, tar_path.with_suffix(".json").name, text)


def _members(
    samples: Samples, labels: NDArray[np.int64] | None, first_key: int, encoding: Encoding
) -> Iterator[tuple[str, bytes]]:
    suffix = "npy" if samples.ndim == 2 else encoding
    step = 256  # samples encoded at once, to bound the memory
    for start in range(0, len(samples), step):
        block = samples[start : start + step]
        for i, payload in enumerate(encode_pngs(block) if suffix == "png" else map(encode_npy, block), start):
            key = f"{first_key + i:09d}"
            yield f"{key}.{suffix}", payload
            if labels is not None:
                yield f"{key}.cls", str(int(labels[i])).encode()


def encode_pngs(images: NDArray[Any]) -> list[bytes]:
    """uint8 [N, C, H, W] -> N PNG files, on several threads."""
    return png.encode(images, png.threads_here())


def encode_npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def decode(name: str, payload: bytes) -> NDArray[Any]:
    """The sample of a member: uint8 [C, H, W] or float32 [D]. Raises ValueError or OSError when it cannot be read."""
    if name.endswith(".npy"):
        return _decode_npy(payload)
    ours = png.decode(payload)
    if ours is not None:
        return ours
    with Image.open(io.BytesIO(payload)) as image:
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _decode_npy(payload: bytes) -> NDArray[Any]:
    """The array of a `.npy` file. np.load takes 20 times as long, because it parses the header of every file."""
    start = 10 + int.from_bytes(payload[8:10], "little")
    dtype, shape = _npy_header(payload[:start])
    if dtype is None or len(payload) != start + dtype.itemsize * math.prod(shape):
        array: NDArray[Any] = np.load(io.BytesIO(payload), allow_pickle=False)
        return array
    return np.frombuffer(payload, dtype, offset=start).reshape(shape).copy()


@functools.lru_cache(64)
def _npy_header(header: bytes) -> tuple[np.dtype[Any] | None, tuple[int, ...]]:
    """dtype and shape from the header of a `.npy` file; no dtype where only np.load reads or refuses such a file."""
    if header[:8] != b"\x93NUMPY\x01\0":
        return None, ()
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header[8:]))
    return (None if fortran or dtype.hasobject else dtype), shape


def content_sha256(samples: Samples, labels: NDArray[np.int64] | None) -> str:
    """SHA-256 of the decoded samples and labels. It does not depend on the zlib in use, as PNG bytes do."""
    total = hashlib.sha256(np.ascontiguousarray(samples).tobytes())
    if labels is not None:
        total.update(labels.astype("<i8").tobytes())
    return total.hexdigest()


def read_shard(path: Path) -> tuple[Samples, NDArray[np.int64] | None]:
    """All samples of a shard, in order, and its labels or None.

    Raises UserError, naming the file and the sample, when a sample is damaged, missing or of another shape.
    """
    return parse_shard(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a file of a sealed set. Raises UserError, naming the file, when it is unreadable or was removed."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        gone = path.name in manifest.removed(path.parent)
        raise UserError(f"{path}: {'removed by retention (keep)' if gone else 'no such file'}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error


def parse_shard(raw: bytes, name: str) -> tuple[Samples, NDArray[np.int64] | None]:
    """As `read_shard`, from the shard's bytes. `name` is the file's name in messages."""
    samples: dict[str, NDArray[Any]] = {}
    labels: dict[str, int] = {}
    key = ""
    try:
        for member, payload in tar.members(raw):
            key, _, suffix = member.rpartition(".")
            kept: dict[str, Any] = labels if suffix == "cls" else samples
            if key in kept:
                raise ValueError("appears twice")
            kept[key] = int(payload) if suffix == "cls" else decode(member, payload)
        if labels and list(labels) != list(samples):
            key = next(iter(samples.keys() ^ labels.keys()), key)
            raise ValueError(f"{len(samples)} samples and {len(labels)} labels do not go together")
        return np.stack(list(samples.values())), np.array(list(labels.values()), np.int64) if labels else None
    except (ValueError, OSError, EOFError, SyntaxError, zlib.error) as error:
        raise UserError(f"{name}: damaged shard, at sample {key or '(first)'}: {reason(error)}") from error


def seal_dataset(
    folder: Path,
    count: int = 1,
    *,
    about: Mapping[str, Any] | None = None,
    made_from: Mapping[str, str] | None = None,
    more: Iterable[str] = (),
) -> Manifest:
    """Seals a folder of complete shards as one data set, with the files named in `more`.

    count  the number of shards, if the caller knows it

    Raises UserError, naming the first missing shard, when one is missing, and when shapes, dtypes or labelling differ.
    """
    sides = sorted(folder.glob("shard-*.json"))
    missing = next((i for i in range(max(count, len(sides))) if not is_done(folder, i)), None)
    if missing is not None:
        raise UserError(f"{folder}: {shard_name(missing)} is missing or unfinished: make it before sealing")
    entries = [manifest.entry(folder, name) for name in more]
    shards = []
    for side_path in sides:
        side = json.loads(side_path.read_text())
        name = side_path.with_suffix(".tar").name
        entries.append(FileEntry(name=name, bytes=side["bytes"], sha256=side["sha256"]))
        entries.append(manifest.entry(folder, side_path.name))
        shards.append({"name": name, "count": side["count"], "content_sha256": side["content_sha256"]})
        kind = {key: side[key] for key in ("shape", "dtype", "labelled")}
        if side_path is sides[0]:
            first = kind
        if kind != first:
            raise UserError(f"{folder / name}: holds {kind}, but the shards before it hold {first}")
    facts = {**first, "shards": shards, **(about or {})}
    samples = sum(shard["count"] for shard in shards)
    kind_name = "vectors" if len(first["shape"]) == 1 else "images"
    return manifest.seal(folder, kind_name, samples, entries, about=facts, made_from=made_from)
