"""What a user named as the source of an import -> the Source that reads it, by what is found there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from entroloop.data import arrays, containers
from entroloop.data.errors import UserError
from entroloop.data.sources import Source, is_image, no_splits


def open_source(text: str, split: str | None = None) -> Source:
    """The source of that name: a word (`digits`, …), a file or a folder.

    Raises UserError when there is none, it is empty, of no known kind or damaged, or has no such split.
    """
    if text in arrays.WORDS:
        no_splits(text, split)
        return arrays.WORDS[text]()
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, split)
    if path.is_file():
        return _file(path, split)
    near = difflib.get_close_matches(text, arrays.WORDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a file, a folder or one of {', '.join(arrays.WORDS)}"
    raise UserError(f"{text}: no such file or folder: {hint}")


def _folder(path: Path, split: str | None) -> Source:
    listing = containers.walk(path)
    if not listing:
        raise UserError(f"{path}: empty folder")
    top = [name for name in listing if "/" not in name]
    if any(arrays.is_idx(name) for name in top):
        return arrays.idx(path, split, top)
    if any(is_image(name) for name in listing):
        return containers.image_folder(path, split, listing)
    raise UserError(f"{path}: holds no images ({_some(listing)})")


def _file(path: Path, split: str | None) -> Source:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty file")
    if arrays.is_idx(path.name):
        return arrays.idx(path, split, [path.name])
    raise UserError(f"{path}: not a kind of data set that can be imported")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … {len(names)} files" if len(names) > 3 else "")
