"""Image files as others keep them: folders.

a path  ->  ImageSource: names, labels, and one payload of bytes a sample
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from entroloop.data.sources import ImageSource, by_folders, is_image, split_folders


def walk(folder: Path) -> list[str]:
    """Every visible file below a folder, relative, with `/`, sorted by name; linked folders are followed once."""
    found: list[str] = []

    def visit(path: str, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        status = os.stat(path)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for entry in os.scandir(path):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                visit(entry.path, f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file():
                found.append(prefix + entry.name)

    visit(str(folder), "", frozenset())
    return sorted(found, key=lambda name: unicodedata.normalize("NFC", name))


@dataclass
class FilePayload:
    folder: str
    names: Sequence[str]

    def __call__(self, row: int) -> bytes:
        return Path(self.folder, self.names[row]).read_bytes()


def image_folder(folder: Path, split: str | None, listing: list[str]) -> ImageSource:
    """Images below a folder; each first-level sub-folder is a class (see `by_folders`)."""
    names = [name for name in listing if is_image(name)]
    names = split_folders(str(folder), split, names)
    labels, classes = by_folders(names)
    chosen = set(names)
    return ImageSource(
        kind="image folder",
        where=str(folder),
        names=[unicodedata.normalize("NFC", name) for name in names],
        payload=FilePayload(str(folder), names),
        labels=labels,
        classes=classes,
        ignored=tuple(name for name in listing if name not in chosen and not is_image(name)),
    )
