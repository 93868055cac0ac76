"""The work of an import: makes one shard at a time, in this process or in several worker processes.

    Source + rows  ->  scan (headers only)  ->  channels and size of each image
    Source + SampleForm + ShardTask  ->  one shard on disk

Worker processes import only this module, so it must not import torch.

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from entroloop.data.child import end_with
from entroloop.data.errors import UserError
from entroloop.data.progress import Progress
from entroloop.data.sources.base import ImageSource, Source
from entroloop.data.sources.images import Channels, Filter, convert, from_array
from entroloop.data.sources.rows import fault
from entroloop.data.sources.sealed import SealedSource
from entroloop.data.store.shards import REAL, Encoding, Provenance, Samples, write_shard

T = TypeVar("T")


@dataclass(frozen=True)
class SampleForm:
    """The form of every sample in the shards.

    shape     (C, H, W) for uint8 images, (D,) for float32 vectors
    encoding  of images in the shards
    labelled  whether samples have labels
    filter    with which images are resized
    """

    shape: tuple[int, ...]
    encoding: Encoding
    labelled: bool
    filter: Filter = "auto"

    @property
    def unit(self) -> str:
        """Name of a sample in progress bars."""
        return "img" if len(self.shape) == 3 else "row"

    def facts(self) -> dict[str, Any]:
        """The form as plain values, from which `of` makes it again."""
        return {**dataclasses.asdict(self), "shape": list(self.shape)}

    @staticmethod
    def of(facts: Mapping[str, Any]) -> SampleForm:
        return SampleForm(**{**facts, "shape": tuple(facts["shape"])})


@dataclass(frozen=True)
class ShardTask:
    """One shard: its number, the number of its first sample in the new set, and the rows of the source that it gets.

    keep  whether samples keep their numbers in the source, and the provenance that a sealed source has. Without it,
          they are real samples, numbered from `first`
    """

    number: int
    first: int
    rows: NDArray[np.int64]
    keep: bool = False


def scan(source: ImageSource, sized: bool, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Channels, width and height from the headers of images: int64 [n, 3]. Raises UserError, naming a damaged image."""
    return np.array([source.header(int(row), sized=sized) for row in rows])


def read_samples(source: Source, rows: NDArray[np.int64], form: SampleForm) -> Samples:
    """The converted samples of these rows. Raises UserError, naming the sample, when a sample is damaged."""
    samples = np.empty((len(rows), *form.shape), np.uint8 if len(form.shape) == 3 else np.float32)
    for i, (row, sample) in enumerate(zip(rows, source.read(rows), strict=True)):
        with source.naming(int(row)):
            samples[i] = fit(sample, form)
    return samples


def make_shard(source: Source, dest: Path, form: SampleForm, task: ShardTask) -> ShardTask:
    """Reads, converts and writes one shard. If a sample is damaged, raises UserError and writes nothing."""
    samples = read_samples(source, task.rows, form)
    labels = source.labels[task.rows] if form.labelled and source.labels is not None else None
    provenance = _provenance(source, task)
    write_shard(dest, task.number, samples, labels, provenance, first_key=task.first, encoding=form.encoding)
    return task


def _provenance(source: Source, task: ShardTask) -> Provenance:
    if task.keep and isinstance(source, SealedSource):
        return source.dataset.provenance.take(task.rows)
    names = tuple(source.names[int(row)] for row in task.rows)
    numbers = task.rows if task.keep else np.arange(task.first, task.first + len(task.rows))
    return Provenance(np.full(len(task.rows), REAL), numbers, names)


def fit(sample: Any, form: SampleForm) -> NDArray[Any]:
    """A sample of a source, an opened image or an array, in the shape of the form."""
    channels: Channels = 1 if form.shape[0] == 1 else 3
    if not isinstance(sample, np.ndarray):
        resolution = form.shape[1] if form.shape[1] == form.shape[2] else None
        return convert(sample, channels, resolution, form.filter)
    if sample.shape == form.shape:
        return sample
    image = from_array(sample)
    return convert(image, channels, form.shape[1] if form.shape[1:] != sample.shape[1:] else None, form.filter)


# --- sharing between processes ------------------------------------------------------------------------------------

_shared: tuple[Any, ...] = ()  # in a worker process: the function and the arguments that all its tasks share, sent once


def _begin(parent: int, *shared: Any) -> None:
    global _shared
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # sent to the whole group; the parent reacts to them
        signal.signal(name, signal.SIG_IGN)
    end_with(parent)  # the workers of a killed parent would wait forever
    _shared = shared


def _task(item: Any) -> Any:
    work, *shared = _shared
    return work(*shared, item)


def _each(workers: int, work: Callable[..., T], shared: tuple[Any, ...], items: Sequence[Any]) -> Iterator[T]:
    """`work(*shared, item)` of each item, in order, done by this process or by several worker processes."""
    if workers <= 1 or len(items) <= 1:
        yield from (work(*shared, item) for item in items)
        return
    # `spawn`, because the parent may have threads of torch or of a progress bar, and a fork does not copy threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(), work, *shared))
    try:
        yield from pool.map(_task, items)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died (killed, or out of memory): run the same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_shards(
    source: Source, dest: Path, form: SampleForm, tasks: Sequence[ShardTask], workers: int
) -> Iterator[ShardTask]:
    """Makes the shards. Yields each task, in order, when its shard is complete."""
    return _each(workers, make_shard, (source, dest, form), tasks)


def scan_all(
    source: ImageSource, rows: NDArray[np.int64], workers: int, *, sized: bool = True, progress: bool = False
) -> NDArray[np.int64]:
    """Scans all rows, shared between processes: int64 [N, 3], or raises UserError, as `scan` does."""
    pieces = np.array_split(rows, max(1, len(rows) // 500))
    found = []
    with Progress("scan", len(rows), "img", show=progress) as bar:
        for piece, here in zip(pieces, _each(workers, scan, (source, sized), pieces), strict=True):
            found.append(here)
            bar.advance(len(piece))
    return np.concatenate(found)


def check_vectors(source: Source, rows: NDArray[np.int64]) -> None:
    """Raises UserError, naming the first vector with a value that float32 does not hold, when there is one."""
    for row, vector in zip(rows, source.read(rows), strict=True):
        if (wrong := fault(vector)) is not None:
            raise UserError(f"{source.where}: {source.names[int(row)]} holds {wrong}")
