"""Work on a source that fills a folder: a second attempt with the same settings continues it, any other is refused.

    source + settings  ->  Begun.check, Begun.begin  ->  import.json in the folder, until the folder is sealed

`import`, `encode` and `take` use this module. The seal then holds the same facts under the name of the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data import files
from entroloop.data.errors import UserError, reading
from entroloop.data.paths import at_home
from entroloop.data.seeds import Part
from entroloop.data.sources.base import Source
from entroloop.data.sources.given import Lists
from entroloop.data.sources.sealed import SealedSource
from entroloop.data.store import manifest

PIECE = 4096  # names that are in memory at a time
WORKS = {"import": "an import", "encode": "features", "take": "chosen samples"}
SINGLE = ("settings", "source")  # settings are compared one by one, and the source's digest has no meaning for people


@dataclass(frozen=True)
class Begun:
    """The work of one command in the folder `dest`.

    work  `import`, `encode` or `take`
    """

    dest: Path
    work: str

    @property
    def path(self) -> Path:
        return self.dest / f"{self.work}.json"

    @property
    def lists(self) -> Path:
        """The folder in which the parts of the work leave lists of the images in tars for each other."""
        return self.dest / f"{self.work}.tars"

    def shared(self, part: Part) -> Lists | None:
        """The lists that the parts share; None once the work is sealed, since its disk may be read-only then."""
        return None if manifest.is_sealed(self.dest) else Lists(self.lists, part)

    @contextlib.contextmanager
    def or_nothing(self) -> Iterator[None]:
        """Removes the lists again when the context raises UserError and the work has not begun."""
        try:
            yield
        except UserError:
            if self.lists.exists() and not self.path.exists():
                shutil.rmtree(self.lists, ignore_errors=True)
                with contextlib.suppress(OSError):  # it holds something else
                    self.dest.rmdir()
            raise

    def facts(self) -> dict[str, Any] | None:
        """The facts of the work in the folder, finished or not; None if none has begun.

        Raises UserError when another command sealed the folder, and when the facts are damaged.
        """
        there = None if manifest.is_sealed(self.dest) else self._unfinished()
        if manifest.is_sealed(self.dest):  # also by another process, just now
            there = manifest.read(self.dest).about.get(self.work)
            if there is None:
                what = WORKS[self.work]
                raise UserError(f"{self.dest}: already holds a sealed set that is not {what}: give another folder")
        return there

    def _unfinished(self) -> dict[str, Any] | None:
        damaged = f"damaged: remove the folder and {self.work} again"
        with reading(str(self.path), damaged), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return found
        return None

    def check(self, source: str, identity: Mapping[str, Any]) -> None:
        """Raises UserError unless the folder is missing, empty, or holds the same work, finished or not.

        identity  the facts in which two attempts must agree
        """
        self.check_place(source)
        there = self.facts()
        if there is not None and (different := _difference(there, identity)):
            what = WORKS[self.work]
            raise UserError(f"{self.dest}: holds {what} made otherwise ({different}): give another folder")

    def check_place(self, source: str) -> None:
        """Raises UserError when `dest` is inside the source, is a file, or holds files of no such work."""
        check_outside(source, self.dest)
        if self.dest.exists() and not self.dest.is_dir():
            raise UserError(f"{self.dest}: is a file: give a folder")
        names = [entry.name for entry in self.dest.iterdir()] if self.dest.is_dir() else []
        others = any(not name.startswith(files.TEMPORARY) and name != self.lists.name for name in names)
        if others and not (self.path.exists() or manifest.is_sealed(self.dest)):  # in this order: `path` goes last
            raise UserError(f"{self.dest}: already holds other files: give a new or empty folder")

    def begin(self, source: str, identity: Mapping[str, Any], more: Mapping[str, Any]) -> bool:
        """Writes the facts. Returns False if another process has sealed the folder by now.

        more  facts that follow from the identity, and that later attempts need not compute again

        Raises UserError as `check` does. Removes temporary files that killed attempts left behind.
        """
        text = files.json_bytes({**identity, **more})
        if manifest.is_sealed(self.dest) or not files.create(self.path, lambda file: file.write(text)):
            self.check(source, identity)
        if manifest.is_sealed(self.dest):
            self.clean_up()
            return False
        files.sweep_temporaries(self.dest)
        return True

    def clean_up(self) -> None:
        """Removes the facts and the lists, which only unfinished work needs, and what a kill just after the seal left.

        Does not touch the disk if they are already gone, because finished work may be on a read-only disk.
        """
        if self.lists.exists():
            shutil.rmtree(self.lists, ignore_errors=True)
        if self.path.exists():
            self.path.unlink(missing_ok=True)
        files.sweep_temporaries(self.dest, f"-{manifest.MANIFEST}")  # of an attempt killed just after it sealed


def check_finished(folder: Path) -> None:
    """Raises UserError for a folder in which a command has begun that has not sealed it. It may lack samples."""
    if manifest.is_sealed(folder):
        return
    work = next((work for work in WORKS if (folder / f"{work}.json").is_file()), "")
    ours = any(path.with_suffix(".json").is_file() for path in folder.glob("shard-*.tar"))
    if work and "source_count" in (Begun(folder, work).facts() or {}):
        raise UserError(f"{folder}: unfinished: complete it with the same entroloop {work} that has begun it")
    if ours:
        raise UserError(f"{folder}: not sealed (no {manifest.MANIFEST}): unfinished, or copied without this file")


def check_outside(source: str, dest: Path) -> None:
    """Raises UserError when `dest` is inside the folder `source`."""
    origin = at_home(source)
    if origin.is_dir() and dest.resolve().is_relative_to(origin.resolve()):
        raise UserError(f"{dest}: is inside the source {source}: give a path outside it")


def names_digest(source: Source) -> str:
    """Identifies the names, labels and classes of a source. It does not cover the samples themselves.

    The digest of `{"names": …, "labels": …, "classes": …}` by `files.digest`, without the JSON of all names at once.
    """
    sha, before = hashlib.sha256(), "{"
    for key in ("classes", "labels", "names"):
        sha.update(f'{before}\n  "{key}": '.encode())
        _add(sha, getattr(source, key))
        before = ","
    sha.update(b"\n}\n")
    return sha.hexdigest()


def _add(sha: hashlib._Hash, values: Sequence[Any] | NDArray[np.int64] | None) -> None:
    """Adds a list as `files.json_bytes` writes it."""
    if values is None or not len(values):
        sha.update(b"null" if values is None else b"[]")
        return
    for at in range(0, len(values), PIECE):
        piece = values[at : at + PIECE]
        plain = piece.tolist() if isinstance(piece, np.ndarray) else list(piece)
        text = json.dumps(plain, ensure_ascii=False, separators=(",\n    ", ":"))[1:-1]
        sha.update(f"{',' if at else '['}\n    {text}".encode())
    sha.update(b"\n  ]")


def source_digest(source: Source) -> str:
    """Identifies a source: the digest of a sealed set, else `names_digest`."""
    return source.dataset.manifest.digest if isinstance(source, SealedSource) else names_digest(source)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    pairs = [(name, there["settings"].get(name), value) for name, value in here["settings"].items()]
    pairs += [(name.replace("_", " "), there.get(name), here[name]) for name in here if name not in SINGLE]
    found = [f"{name} {before!r} there, {now!r} now" for name, before, now in pairs if before != now]
    if not found and there.get("source") != here["source"]:
        found = ["the source's names or labels changed"]
    return "; ".join(found)
