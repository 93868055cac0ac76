"""Seals: the manifest is written into a folder last and lists its contents.

A folder without `manifest.json` is unfinished. A sealed folder never changes again. The manifest holds the size and
SHA-256 of every file, the digests of the folder's inputs, and its own digest. It holds nothing that differs between two
equal runs (no time, no host name, no absolute path), so runs can be moved and compared byte by byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from entroloop.data import files
from entroloop.data.errors import UserError, reading, reason

MANIFEST = "manifest.json"
REMOVED = "removed.json"  # beside the manifest: names of the sealed files that retention removed
UNREADABLE = "cannot be read"  # in every line on a file that the operating system does not let this process read
FORMAT = 1


class FileEntry(BaseModel):
    """One sealed file: its name relative to the folder, its size in bytes and its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The contents of a sealed folder.

    kind       kind of the contents: `images`, `vectors`, `index`, `weights`, `classifier`, `features` or `metrics`
    count      number of samples (rows)
    about      facts that a reader needs: shape, dtype, classes, encoders, …
    made_from  name of each input -> digest of the input's manifest, or of the configuration that decided
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    kind: str
    count: int
    about: dict[str, Any] = {}
    made_from: dict[str, str] = {}
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """Identifies the content: equal manifests have equal digests."""
        return files.digest(self.model_dump(mode="json"))

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)


def entry(folder: Path, name: str) -> FileEntry:
    """Sizes and hashes one file of a folder."""
    return FileEntry(name=name, bytes=(folder / name).stat().st_size, sha256=files.sha256(folder / name))


def seal(
    folder: Path,
    kind: str,
    count: int,
    names: Iterable[str | FileEntry],
    *,
    about: Mapping[str, Any] | None = None,
    made_from: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes and returns the manifest of `folder`, whose files are complete.

    names  the files, relative to the folder; a FileEntry is not hashed again

    If another process sealed the folder first, returns the manifest of that process.
    """
    entries = [entry(folder, name) if isinstance(name, str) else name for name in names]
    manifest = Manifest(
        kind=kind,
        count=count,
        about=dict(about or {}),
        made_from=dict(made_from or {}),
        files=tuple(sorted(entries, key=lambda e: e.name)),
    )
    text = files.json_bytes({**manifest.model_dump(mode="json"), "digest": manifest.digest})
    return manifest if files.create(folder / MANIFEST, lambda file: file.write(text)) else read(folder)


def add(folder: Path, name: str, write: Callable[[IO[bytes]], object]) -> bool:
    """Writes a file of a folder that will be sealed. An existing file does not change.

    name  relative to the folder

    Returns whether this call made the file. Raises UserError when the folder is sealed and has no such file, and when
    the disk is full.
    """
    if (folder / name).exists():
        return False
    check_unsealed(folder)
    return files.create(folder / name, write)


def put(folder: Path, name: str, content: bytes) -> bool:
    """Writes these bytes to a file of a folder that will be sealed. See `add`."""
    return add(folder, name, lambda file: file.write(content))


def check_unsealed(folder: Path) -> None:
    """Raises UserError when the folder is sealed, because no file of a sealed folder may be added or changed."""
    if is_sealed(folder):
        raise UserError(f"{folder}: is sealed and must stay as it is: choose another folder")


def is_sealed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read(folder: Path) -> Manifest:
    """The manifest of a sealed folder.

    Raises UserError, naming the folder or file, when there is no manifest, when it is damaged, or when it has another
    format number.
    """
    path = folder / MANIFEST
    files.check_folder(folder)
    if not path.is_file():
        raise UserError(f"{folder}: not sealed (no {MANIFEST}): either unfinished or not made by entroloop")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict):
            if raw.get("format", FORMAT) != FORMAT:
                raise UserError(f"{path}: format {raw['format']} is not the {FORMAT} this version of entroloop reads")
            if raw.pop("digest", None) != files.digest(raw):
                raise UserError(f"{path}: damaged manifest (content changed since it was sealed)")
        return Manifest.model_validate(raw)
    except ValueError as error:  # not UTF-8, not JSON, another structure, or a number that JSON does not have
        raise UserError(f"{path}: damaged manifest ({reason(error)})") from error


def removed(folder: Path) -> frozenset[str]:
    """Names of the sealed files that retention removed. Raises UserError when `removed.json` is damaged."""
    path = folder / REMOVED
    if not path.is_file():
        return frozenset()
    with reading(str(path)):
        return frozenset(json.loads(path.read_text())["removed"])


def remove(folder: Path, names: list[str]) -> int:
    """Notes these files of a sealed folder as removed, then deletes them. Returns the number of bytes freed."""
    before = removed(folder)
    new = sorted(set(names) - before)
    if new:
        files.put(folder / REMOVED, files.json_bytes({"removed": sorted(before | set(new))}))
    freed = 0
    for name in names:  # also names that an earlier, killed attempt noted but did not delete
        path = folder / name
        if path.is_file():
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
    return freed


def copy_sealed(source: Path, target: Path) -> None:
    """Copies a sealed folder, the manifest last. Within a file system, hard links replace copies of the bytes."""
    gone = removed(source)
    names = [entry.name for entry in read(source).files if entry.name not in gone]
    for name in [*names, *([REMOVED] if gone else []), MANIFEST]:
        to = target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.exists():
            continue
        try:
            os.link(source / name, to)
        except FileExistsError:
            continue
        except OSError:
            with (source / name).open("rb") as original:
                files.create(to, lambda file, o=original: shutil.copyfileobj(o, file))  # type: ignore[misc]


def problems(folder: Path, advance: Callable[[int], None] = lambda size: None) -> list[str]:
    """Checks every file of a sealed folder. Returns one line per file that is missing, resized, changed or unreadable.

    A file that retention removed is not a problem.

    advance  called with the sealed size of each file after its check
    """
    found = []
    gone = removed(folder)
    for e in read(folder).files:
        path = folder / e.name
        if path.is_file() or e.name not in gone:
            found += _problem(path, e)
        advance(e.bytes)
    return found


def check(folder: Path, names: Iterable[str]) -> None:
    """Raises UserError, naming the file, when one of these files of a sealed folder differs from its seal."""
    sealed = {e.name: e for e in read(folder).files}
    for name in names:
        path = folder / name
        if name not in sealed:
            raise UserError(f"{path}: not among the files that {MANIFEST} names")
        if not path.is_file() and name in removed(folder):
            raise UserError(f"{path}: removed by retention (keep)")
        for line in _problem(path, sealed[name]):
            raise UserError(line)


def _problem(path: Path, sealed: FileEntry) -> list[str]:
    """One line if the file is missing, resized, changed or unreadable; no line if it is intact."""
    try:
        if not path.is_file():
            return [f"{path}: missing"]
        if path.stat().st_size != sealed.bytes:
            return [f"{path}: {path.stat().st_size} bytes instead of the sealed {sealed.bytes}"]
        if files.sha256(path) != sealed.sha256:
            return [f"{path}: content changed since it was sealed (SHA-256 differs)"]
    except OSError as error:
        return [f"{path}: {UNREADABLE} ({reason(error)})"]
    return []
