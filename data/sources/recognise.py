"""Recognises the source of an import from its name or its contents, and opens it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entroloop.data import address
from entroloop.data.address import is_remote
from entroloop.data.catalogue import FORMATS, SOURCES
from entroloop.data.errors import UserError, reason
from entroloop.data.paths import at_home
from entroloop.data.registry import hint, is_own, said
from entroloop.data.sources import hub
from entroloop.data.sources.base import LABELS, MISSING, ArraySource, Source, is_image, no_splits
from entroloop.data.sources.begun import check_finished
from entroloop.data.sources.given import Given, Lists
from entroloop.data.sources.rows import Rows
from entroloop.data.sources.sealed import SealedSource
from entroloop.data.sources.settings import Settings
from entroloop.data.store import remote

REQUIRED = ("kind", "where", "names", "labels", "classes", "ignored", "read", "naming")


def open_source(
    text: str, split: str | None = None, *, key: str | None = None, labels: bool = True, lists: Lists | None = None
) -> Source:
    """Opens a source: a file or folder, the address of a sealed set, or a name in SOURCES (`digits`, …).

    key     name of the array to read, if a file or feature folder holds several (see `row_files`)
    labels  False ignores labels in an archive of arrays
    lists   where the parts of one work share the lists of images in tars; None shares none

    Raises UserError when the source does not exist, is empty, damaged or of no known kind, or has no such split or key.
    """
    source = _open(text, split, key, labels, lists)
    of_rows = isinstance(source, ArraySource) and isinstance(source.array, Rows)
    if key is not None and not of_rows and not text.startswith(hub.PREFIX):
        raise UserError(f"--key {key}: {text} has no arrays with names")
    return source


def open_samples(text: str, settings: Settings, lists: Lists | None = None) -> Source:
    """Opens a source by the settings of an import, and checks its labels if the settings keep them.

    Raises UserError as `open_source` does, when the source is empty, and when a label is missing or out of range.
    """
    own_split = settings.heldout and settings.split in (None, "train", "test")
    split = None if own_split else settings.split
    opened = open_source(text, split, key=settings.key, labels=settings.labels, lists=lists)
    if not len(opened.names):
        raise UserError(f"{text}: holds no samples")
    if settings.labels and opened.labels is not None and (opened.labels == MISSING).any():
        without = np.flatnonzero(opened.labels == MISSING)
        raise UserError(
            f"{text}: {len(without)} of {len(opened.names)} samples have no label, first {opened.names[without[0]]}: "
            "label them or give --no-labels"
        )
    if settings.labels and opened.labels is not None:
        end = len(opened.classes) or LABELS
        wrong = np.flatnonzero((opened.labels < 0) | (opened.labels >= end))
        if len(wrong):
            one = f"{opened.names[wrong[0]]} has the label {opened.labels[wrong[0]]}"
            raise UserError(f"{text}: {one}: labels go from 0 to {end - 1}")
    return opened


def _open(text: str, split: str | None, key: str | None, labels: bool, lists: Lists | None) -> Source:
    if text in SOURCES.built_in:
        no_splits(text, split)
        found: Source = SOURCES.load(text)()
        return found
    if text.startswith(hub.PREFIX):
        return hub.open_hub(text, split, key, labels)
    if is_remote(address.check(text)):
        no_splits(text, split)
        return SealedSource.of(remote.open_dataset(text))
    path = at_home(text)
    try:
        if path.is_dir() or path.is_file():
            return _recognised(Given(path, split, key, labels, lists))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({reason(error)})") from error
    if is_own(text) or text in SOURCES.names:
        no_splits(text, split)
        return _own(text)
    if path.exists():
        raise UserError(f"{path}: is a device or pipe: give a file or folder")
    raise UserError(f"{text}: no such file or folder: {hint(text, SOURCES.names, 'give a file, a folder or one of')}")


def _own(name: str) -> Source:
    """A source that is not built in. Raises UserError when its function fails or does not return a Source."""
    try:
        found = SOURCES.load(name)()
    except UserError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise UserError(f"source {name}: called without arguments it raised {said(error)}") from error
    lacking = [word for word in REQUIRED if not hasattr(found, word)]
    if lacking:
        raise UserError(f"source {name}: returned {type(found).__name__}, which lacks {', '.join(lacking)}")
    source: Source = found
    return source


def _recognised(given: Given) -> Source:
    """The source as the first format that knows it reads it. Raises UserError when no format does."""
    if given.is_folder:
        check_finished(given.path)
    for name in FORMATS.names:
        source: Source | None = FORMATS.load(name)(given)
        if source is not None:
            return source
    if given.is_folder:
        raise UserError(f"{given.path}: holds no images ({_some(list(given.found.entries))})")
    if is_image(given.path.name):
        raise UserError(f"{given.path}: is a single image: give its folder")
    raise UserError(
        f"{given.path}: not a kind of data set that can be imported: give images (a folder, .zip or .tar), arrays "
        "(.npy or .npz) or Parquet"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … {len(names)} files" if len(names) > 3 else "")
