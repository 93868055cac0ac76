"""Sets of samples that any program made, read block by block, and their features in a mapped file.

    folder | sealed shards | .npz | .npy | features  ->  opened_set  ->  SampleSet  ->  features_of  ->  float32 [n, D]

N samples, C channels, H height, W width, D features, n rows of one rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import Encoder
from entroloop.data.features.pixel import Pixel
from entroloop.data.progress import Progress
from entroloop.data.runfolder import CONFIG
from entroloop.data.seeds import bounds
from entroloop.data.sources.convert import SampleForm, fit, read_samples
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.row_files import is_rows, opened
from entroloop.data.sources.rows import Rows
from entroloop.data.sources.settings import Settings, default_shard_size, find_form
from entroloop.data.store.index import Indexed, open_set
from entroloop.data.store.manifest import MANIFEST
from entroloop.data.store.shards import Samples
from entroloop.data.wording import counted
from entroloop.data.world import World

GENERATION = "generation_"  # prefix of the folders of a run's generations
BLOCK = 1 << 24  # bytes of rows that are read at a time
INDEXED = 256  # samples of an index that are read at a time


@dataclass(frozen=True)
class SampleSet:
    """An opened set of at least two samples.

    shape   of one sample after resizing: (C, H, W) for uint8 images, (D,) for float32 vectors
    blocks  the samples of a slice, some at a time: uint8 [n, C, H, W] or float32 [n, D]
    rows    the arrays that hold the samples, if arrays do
    """

    path: Path
    count: int
    shape: tuple[int, ...]
    blocks: Callable[[slice], Iterator[Samples]]
    rows: Rows | None = None

    @property
    def described(self) -> str:
        if len(self.shape) == 1:
            return f"vectors of {self.shape[0]} numbers"
        return f"{self.shape[1]}x{self.shape[2]} images with {counted(self.shape[0], 'channel')}"


@contextlib.contextmanager
def opened_set(
    path: Path, resolution: int | None = None, key: str | None = None, world: World | None = None
) -> Iterator[SampleSet]:
    """A set of samples as a context. Raises UserError at its end if an array file has changed since its beginning.

    resolution  images are first cropped and resized to this many pixels per side, as `import` does; None: unchanged
    key         name of the array to read from a file or feature folder with several (see `data.sources.row_files`)
    world       every rank opens the same set; rank 0 alone reads the headers of all images where that is necessary

    Raises UserError naming the path when the path is missing, damaged, a run's folder or neither images nor vectors,
    when it holds fewer than two samples, and when a resolution is given for vectors.
    """
    with contextlib.ExitStack() as stack:
        found = _opened(path, resolution, key, world or World(), stack)
        if len(found.shape) == 1 and resolution is not None:
            raise UserError(f"--resolution {resolution}: {path} holds vectors, which have none")
        if found.count < 2:
            raise UserError(f"{path}: holds {counted(found.count, 'sample')}; measures need at least 2")
        yield found


def _opened(
    path: Path, resolution: int | None, key: str | None, world: World, stack: contextlib.ExitStack
) -> SampleSet:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if is_rows(path):
        rows = stack.enter_context(opened(path, key))
        dtype: type[Any] = np.uint8 if len(rows.shape) == 3 else np.float32

        def stored(mine: slice) -> Iterator[Samples]:
            return (np.array(block, dtype) for _, block in rows.blocks(mine, BLOCK))

        return _resized(SampleSet(path, len(rows), rows.shape, stored, rows), resolution)
    if (path / MANIFEST).exists():
        dataset = open_set(path)
        step = INDEXED if isinstance(dataset, Indexed) else len(dataset)  # one shard at a time

        def sealed(mine: slice) -> Iterator[Samples]:
            shards = ((max(a, mine.start), min(b, mine.stop)) for a, b in itertools.pairwise(dataset.starts.tolist()))
            return (dataset.take(np.arange(*piece)) for shard in shards for piece in bounds(*shard, step))

        return _resized(SampleSet(path, len(dataset), dataset.shape, sealed), resolution)
    _check_no_run(path)
    source = open_source(str(path))  # a folder of images, a zip, IDX files: every source that `import` reads
    count = len(source.names)
    if not count:
        raise UserError(f"{path}: holds no images")
    settings = Settings(resolution=resolution, labels=False)
    form = world.on_main(lambda: find_form(source, np.arange(count), settings, 1))

    def read(mine: slice) -> Iterator[Samples]:
        pieces = bounds(mine.start, mine.stop, default_shard_size(form))
        return (read_samples(source, np.arange(*piece), form) for piece in pieces)

    return SampleSet(path, count, form.shape, read)


def _check_no_run(path: Path) -> None:
    """Refuse a run, a generation or a sweep: its folder would be read as one set with the images of all its sets."""
    inside = [path] if path.name.startswith(GENERATION) else []
    inside += [found for pattern in ("", "*/") for found in sorted(path.glob(f"{pattern}{GENERATION}*"))]
    samples = [generation / "samples" for generation in inside]
    sealed = [folder for folder in samples if (folder / MANIFEST).exists()]
    if sealed or (inside and (path / CONFIG).exists()):
        raise UserError(
            f"{path}: holds the sets of a run, real, generated and selected: give one of them, "
            f"such as {(sealed or samples)[-1]}"
        )


def _resized(of: SampleSet, resolution: int | None) -> SampleSet:
    """Images of the set, resized as `import` resizes. Vectors, and any set without a resolution: unchanged."""
    if resolution is None or len(of.shape) != 3 or of.shape[1:] == (resolution, resolution):
        return of
    form = SampleForm((of.shape[0], resolution, resolution), "npy", labelled=False)

    def blocks(mine: slice) -> Iterator[Samples]:
        return (np.stack([fit(image, form) for image in block]) for block in of.blocks(mine))

    return dataclasses.replace(of, shape=form.shape, blocks=blocks)


def features_of(
    of: SampleSet, encoder: Encoder, mine: slice, *, mirrored: bool = False, show: bool = False
) -> NDArray[np.float32]:
    """Features of a slice of the set, memory-mapped: float32 [n, D].

    mirrored  whether the images are flipped first
    show      whether to show progress

    Vectors that a file holds as float32 are their own features in the encoder `pixel`. All others are written to a file
    without a name in the folder for temporary files, whose disk space is free again when nothing refers to the array.
    Raises UserError, naming the set, when a sample cannot be read or encoded, and when a feature is not finite.
    """
    if of.rows is not None and (problem := of.rows.problem(mine)) is not None:
        raise UserError(problem)
    if of.rows is not None and isinstance(encoder, Pixel) and len(of.rows.parts) == 1:
        stored = of.rows.parts[0]
        if stored.ndim == 2 and stored.dtype == np.float32 and stored.dtype.isnative and stored.flags.c_contiguous:
            return stored[mine]
    shape = (mine.stop - mine.start, encoder.dim)
    with tempfile.TemporaryFile(prefix="entroloop-") as file, Progress("encode", shape[0], "row", show=show) as bar:
        for samples in of.blocks(mine):
            turned: Any = np.ascontiguousarray(samples[..., ::-1]) if mirrored else samples
            features = _encoded(turned, encoder, of.path)
            file.write(np.ascontiguousarray(features).data)
            bar.advance(len(features))
        file.flush()
        return np.memmap(file, np.float32, "r", shape=shape) if shape[0] else np.empty(shape, np.float32)


def _encoded(samples: Samples, encoder: Encoder, path: Path) -> NDArray[np.float32]:
    try:
        features = encoder(samples)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not np.isfinite(features).all():
        raise UserError(f"{path}: its features by {encoder.name} hold values that are not finite (inf or nan)")
    return features
