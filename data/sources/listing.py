"""Every entry of a folder, a zip archive or a tar, with a reason for each entry that an import ignores.

    a folder or archive  ->  Listing  ->  `take` the entries to read  +  `ignored`: all others, each with its reason

Names are kept and compared in Unicode's form NFC, because file systems and archivers differ in the form that they
return. Bytes that are not UTF-8 become `\\x..`. Both rules are independent of the locale.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entroloop.data.errors import UserError, reason

HIDDEN = "hidden"
OTHER_SPLIT = "of another split"
OTHER_KIND = "of another kind"
LOST = "a link that cannot be followed"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a folder or an archive that is not itself a folder.

    name     in NFC, with `/`
    place    location of the bytes: a path relative to the folder, a name in the zip archive, or (first byte, size) in
             the tar
    problem  reason why the bytes cannot be read; empty if they can
    lost     whether the entry is a link whose target does not exist
    """

    name: str
    place: Any
    problem: str = ""
    lost: bool = False


class Listing:
    """The visible entries by name, in the order of import, and the names of hidden ones. A hidden folder is one name.

    Raises UserError when two entries have the same name.
    """

    def __init__(self, where: str, entries: Iterable[Entry], hidden: Collection[str]) -> None:
        self.where = where
        self.entries: dict[str, Entry] = {}
        self.hidden = sorted(hidden)
        for entry in entries:
            if entry.name in self.entries:
                raise twice(where, entry.name)
            self.entries[entry.name] = entry
        # These links may have led to folders of samples.
        self._doubtful = [entry for entry in self.entries.values() if entry.lost and not Path(entry.name).suffix]

    def find(self, wanted: Callable[[str], bool]) -> list[str]:
        return [name for name in self.entries if wanted(name)]

    def take(self, names: Iterable[str]) -> list[Entry]:
        """The entries of these names.

        Raises UserError, naming the entry, when one cannot be read, or when any lost link of the listing may have led
        to a folder of samples.
        """
        found = [self.entries[name] for name in names]
        for entry in (*self._doubtful, *found):
            if entry.problem:
                raise UserError(f"{self.where}: {entry.name} is {entry.problem}")
        return found

    def path(self, name: str) -> Path:
        """The path of an entry of a folder. Raises UserError when the entry cannot be read."""
        return Path(self.where, self.take([name])[0].place)

    def ignored(self, read: Collection[str], other_splits: Collection[str] = ()) -> dict[str, str]:
        """Name -> reason, for every entry whose name is not in `read`."""
        others = set(other_splits)
        found = dict.fromkeys(self.hidden, HIDDEN)
        for name, entry in self.entries.items():
            if name not in read:
                found[name] = OTHER_SPLIT if name in others else entry.problem or OTHER_KIND
        return found


def twice(where: str, name: str) -> UserError:
    """The error of a name that two entries have."""
    return UserError(f"{where}: holds the name {name} twice (or with accents coded in two ways): keep one of them")


def told(ignored: Mapping[str, str]) -> str:
    """Counts by reason, each with an example: "3 others ignored (2 of another kind, as a.txt; 1 hidden, as .b)"."""
    if not ignored:
        return ""
    first = dict[str, str]()
    for name, why in ignored.items():
        first.setdefault(why, name)
    reasons = "; ".join(f"{n:,} {why}, as {first[why]}" for why, n in Counter(ignored.values()).most_common())
    return f"{len(ignored):,} other{'s' if len(ignored) > 1 else ''} ignored ({reasons})"


def spelled(name: str | bytes) -> str:
    """A spelling of a name that is the same on every machine and has no line breaks."""
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    text = unicodedata.normalize("NFC", text)
    return text if text.isprintable() else CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def stamp(path: str) -> tuple[int, ...]:
    """Numbers that change when the file does. Caches of open files use the stamp as part of their key."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_hidden(part: str) -> bool:
    """Whether an import ignores files and folders of this name."""
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def of_folder(folder: Path) -> Listing:
    """The entries below a folder, sorted by name. Follows links to files and to folders.

    Raises UserError when two names are equal, and OSError when a folder cannot be read.
    """
    entries: list[Entry] = []
    hidden: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, above = waiting.pop()
        status = os.stat(folder / prefix)
        here = (status.st_dev, status.st_ino)
        if here in above:
            entries.append(Entry(spelled(os.fsencode(prefix.rstrip("/"))), prefix, "a link to a folder above it"))
            continue
        with os.scandir(folder / prefix) as found:
            for item in found:
                place = prefix + item.name
                name = spelled(os.fsencode(place))
                if is_hidden(item.name):
                    hidden.append(name)
                elif item.is_file(follow_symlinks=False):
                    entries.append(Entry(name, place))
                elif (problem := _problem(item.path)) == "a folder":
                    waiting.append((f"{place}/", above | {here}))
                else:
                    entries.append(Entry(name, place, problem, problem.startswith(LOST)))
    return Listing(str(folder), sorted(entries, key=lambda entry: entry.name), hidden)


def _problem(path: str) -> str:
    """The reason why an entry of a folder cannot be read as a file; empty if it is a link to a file."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{LOST} ({reason(error)})"
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device, not a file"
