"""The settings of an import: which rows of the source, in which shape, and how many per shard.

    Source + Settings  ->  choose_rows  ->  rows  ->  find_form  ->  SampleForm

N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.seeds import derive_seed, permutation
from entroloop.data.sources.base import ArraySource, ImageSource, Source
from entroloop.data.sources.convert import SampleForm, check_vectors, scan_all
from entroloop.data.sources.images import Channels, Filter
from entroloop.data.sources.rows import Rows
from entroloop.data.store.shards import Encoding

COLORS: dict[str, Channels | None] = {"auto": None, "grey": 1, "rgb": 3}
_ROWS = re.compile(r"\d+:\d+", re.ASCII)
SHARD_BYTES = 2**27  # decoded; bounds the memory by putting fewer large samples into a shard


@dataclass(frozen=True)
class Settings:
    """The settings that decide the bytes of an import.

    resolution  pixels per side after centre-crop and resize; None keeps the size
    limit       number of samples: the first ones, or, if the source is sorted by class, the first of each class in turn
    split       one of the source's own splits
    key         array of an archive, or encoder of a feature folder
    heldout     for a source without splits: this many seeded rows become `test`, the others `train`
    split_seed  decides which rows `heldout` takes
    color       `auto`, `grey` or `rgb`; `auto` is grey if every image is grey
    labels      False leaves labels out
    encoding    of images in the shards: `png` or `npy`
    shard_size  samples per shard; None: 1,000, or fewer for large samples
    pca         number of principal components that replace the samples; needs `pca_rows`
    pca_rows    `A:B`, the rows of the source to which the axes are fitted; they are not imported
    filter      of the resize: `box` (mean of the area) or `lanczos`; `auto`: box if the factor is whole, else Lanczos
    """

    resolution: int | None = None
    limit: int | None = None
    split: str | None = None
    heldout: int = 0
    split_seed: int = 0
    color: str = "auto"
    labels: bool = True
    encoding: str = "png"
    shard_size: int | None = None
    filter: str = "auto"
    key: str | None = None
    pca: int | None = None
    pca_rows: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("color", COLORS), ("encoding", ("png", "npy")), ("filter", ("auto", "box", "lanczos")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} {getattr(self, name)}: give {' or '.join(choices)}")
        for name in ("resolution", "limit", "shard_size", "pca"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if self.filter != "auto" and self.resolution is None:
            raise UserError(f"--filter {self.filter}: has no effect without --resolution")
        if (self.pca is None) != (self.pca_rows is None):
            raise UserError("--pca and --pca-rows go together: give the rows A:B to which the axes are fitted")
        if self.pca_rows is not None and (not _ROWS.fullmatch(self.pca_rows) or len(self.fitted) < 2):
            raise UserError(f"--pca-rows {self.pca_rows}: give A:B, rows A to B - 1 of the source, at least 2")
        if self.heldout < 0:
            raise UserError(f"--heldout {self.heldout}: must not be negative")

    @property
    def fitted(self) -> range:
        """The rows to which principal axes are fitted."""
        return range(*map(int, self.pca_rows.split(":"))) if self.pca_rows else range(0)


def choose_rows(source: Source, settings: Settings) -> NDArray[np.int64]:
    """The rows of the source to import, sorted: int64 [N]. Raises UserError when the source has too few rows."""
    rows = np.arange(len(source.names))
    if settings.fitted.stop > len(rows) - (settings.fitted.start == 0):
        raise UserError(f"--pca-rows {settings.pca_rows}: the source has {len(rows)} samples, and some must be left")
    rows = np.delete(rows, slice(settings.fitted.start, settings.fitted.stop))
    if settings.heldout:
        if settings.heldout >= len(rows):
            raise UserError(f"--heldout {settings.heldout}: the source has {len(rows)} samples, give fewer")
        order = permutation(derive_seed(settings.split_seed, 0, "import split"), len(rows))
        chosen = order[: settings.heldout] if settings.split == "test" else order[settings.heldout :]
        rows = np.sort(chosen)
    if settings.limit is None or settings.limit == len(rows):
        return rows
    if settings.limit > len(rows):
        raise UserError(f"--limit {settings.limit}: the source has {len(rows)} samples, give at most that")
    labels = source.labels[rows] if settings.labels and source.labels is not None else None
    if labels is None or labels.min() == labels.max() or (np.diff(labels) < 0).any():
        return rows[: settings.limit]
    turn = np.arange(len(rows)) - np.searchsorted(labels, labels)  # number of earlier rows of the same class
    return np.sort(rows[np.lexsort((labels, turn))[: settings.limit]])


def find_form(
    source: Source, rows: NDArray[np.int64], settings: Settings, workers: int, *, progress: bool = False
) -> SampleForm:
    """The form of all samples. Raises UserError when images differ in size and are not resized."""
    labelled = settings.labels and source.labels is not None
    color: Channels | None = COLORS[settings.color]
    if not isinstance(source, ImageSource):
        first = next(iter(source.read(rows[:1])))
        if first.size == 0:
            raise UserError(f"{source.where}: samples of shape {list(first.shape)} hold no numbers")
        if first.ndim == 1:
            if settings.resolution is not None:
                raise UserError(f"--resolution {settings.resolution}: the source holds vectors, which have none")
            if not (isinstance(source, ArraySource) and isinstance(source.array, Rows)):  # `arrays.stored` checks those
                check_vectors(source, rows)
            return SampleForm(first.shape, "npy", labelled)
        channels, size = color or len(first), (first.shape[2], first.shape[1])
    elif color is not None and settings.resolution is not None:
        channels, size = color, (0, 0)
    else:
        found = scan_all(source, rows, workers, sized=settings.resolution is None, progress=progress)
        channels, size = color or int(found[:, 0].max()), tuple(found[0, 1:].tolist())
        odd = np.flatnonzero((found[:, 1:] != size).any(1))
        if len(odd):
            sizes = (f"{source.names[rows[i]]} is {found[i, 1]} x {found[i, 2]}" for i in (0, odd[0]))
            raise UserError(f"{source.where}: images differ in size ({', '.join(sizes)}): give --resolution")
    side = settings.resolution
    return SampleForm(
        (channels, size[1], size[0]) if side is None else (channels, side, side),
        cast("Encoding", settings.encoding),
        labelled,
        cast("Filter", settings.filter),
    )


def num_classes(source: Source) -> int:
    """Number of classes: the largest label plus one, or the number of class names if greater; 0 without labels."""
    return 0 if source.labels is None else max(len(source.classes), int(source.labels.max()) + 1)


def default_shard_size(form: SampleForm) -> int:
    """Samples per shard if the user does not set it."""
    width = math.prod(form.shape) * (1 if len(form.shape) == 3 else 4)
    return max(1, min(1000, SHARD_BYTES // width))
