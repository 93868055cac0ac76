"""Lists every entry of a folder, a zip archive or a tar, and gives a reason for each entry that an import ignores.

    a path  ->  Listing  ->  `take` the entries to read  +  `ignored`: all others, each with its reason

Names are kept and compared in Unicode's form NFC, because file systems and archivers differ in the form that they
return. Bytes that are not UTF-8 become `\\x..`. Both rules are independent of the locale.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from entroloop.data.errors import UserError, reading, reason
from entroloop.data.store import tar

HIDDEN = "hidden"
OTHER_SPLIT = "of another split"
OTHER_KIND = "of another kind"
LOST = "a link that cannot be followed"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


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

    @property
    def may_be_folder(self) -> bool:
        """Whether this entry may be a lost link to a folder of samples."""
        return self.lost and not PurePosixPath(self.name).suffix


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
                raise _twice(where, entry.name)
            self.entries[entry.name] = entry
        self._doubtful = [entry for entry in self.entries.values() if entry.may_be_folder]

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


def _twice(where: str, name: str) -> UserError:
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


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


# --- folders ------------------------------------------------------------------------------------------------------


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
                if _is_hidden(item.name):
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


# --- archives -----------------------------------------------------------------------------------------------------


class _Link(NamedTuple):
    name: str
    target: str
    from_root: bool  # a hard link: its target is the full name of a member


def _of_archive(where: str, members: Sequence[Entry | _Link]) -> Listing:
    by_path = {_plain(member.name): member for member in members}
    folders = {"/".join(path.split("/")[:depth]) for path in by_path for depth in range(path.count("/") + 1)}
    entries: dict[str, Entry] = {}
    hidden: dict[str, None] = {}
    for member in members:
        path = _plain(member.name)
        parts = path.split("/")
        first = next((i for i, part in enumerate(parts) if _is_hidden(part)), None)
        if first is not None:
            hidden["/".join(parts[: first + 1])] = None
        elif path in entries:  # `./a` and `a` are the same file
            raise _twice(where, member.name)
        elif isinstance(member, Entry):
            entries[path] = member
        else:
            end = _follow(path, by_path, folders)
            lost = Entry("", None, f"a link to {member.target}, which is not in this archive", lost=True)
            entries[path] = replace(end or lost, name=member.name)
    return Listing(where, entries.values(), hidden)


def _plain(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _follow(path: str, by_path: Mapping[str, Entry | _Link], folders: Collection[str]) -> Entry | None:
    """The entry at the end of a link; None if the link does not lead to an entry of the archive."""
    todo, done = path.split("/"), list[str]()
    for _ in range(1000):  # steps; only a circle of links needs more
        if not todo:
            end = by_path.get("/".join(done))
            folder = Entry("", None, "a link to a folder of this archive")
            return end if isinstance(end, Entry) else folder if "/".join(done) in folders else None
        part = todo.pop(0)
        if part == ".." and not done:
            return None
        if part == "..":
            done.pop()
        elif part not in ("", "."):
            done.append(part)
            link = by_path.get("/".join(done))
            if isinstance(link, _Link):
                if link.target.startswith("/"):
                    return None
                done = [] if link.from_root else done[:-1]
                todo = link.target.split("/") + todo
    return None


def of_zip(path: Path) -> Listing:
    """The entries of a zip archive, sorted by name. Raises UserError when it is damaged or holds a name twice."""
    members = list[Entry | _Link]()
    with (
        reading(str(path), "damaged or truncated zip archive"),
        path.open("rb") as file,
        zipfile.ZipFile(file) as archive,
    ):
        first = min((info.header_offset for info in archive.infolist()), default=0)
        file.seek(0)
        if first and file.read(4) == b"PK\x03\x04":
            raise UserError(f"{path}: another archive comes before this one in the file: give them as two files")
        for info in archive.infolist():
            name = spelled(_zip_name(info))
            if info.create_system == 0 and "/" not in name:  # some Windows programs write the separator of Windows
                name = name.replace("\\", "/")
            if info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16):
                members.append(_Link(name, spelled(archive.read(info)), from_root=False))
            elif not name.endswith("/"):
                members.append(Entry(name, info.filename))
    return _of_archive(str(path), sorted(members, key=lambda member: member.name))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member, equal in all versions of Python: UTF-8 if the archive holds it, else code page 437.

    Many programs write names in UTF-8 without setting the flag for UTF-8. Some store the UTF-8 name in the extra field
    0x7075, with a CRC of the plain name.
    """
    if info.flag_bits & 0x800:
        return info.orig_filename
    raw, extra = info.orig_filename.encode("cp437"), info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == 0x7075 and field[:5] == b"\1" + struct.pack("<I", zlib.crc32(raw)):
            raw = field[5:]
    with contextlib.suppress(UnicodeDecodeError):
        return raw.decode("utf-8")
    return info.orig_filename


def of_tar(path: Path, unpacked: IO[bytes] | None = None) -> Listing:
    """The entries of a tar, in its order.

    unpacked  the unpacked contents, if the file at `path` is compressed

    Raises UserError when the tar is compressed, when it is damaged, and when it holds a name twice.
    """
    with reading(str(path), "damaged or truncated tar"), unpacked or path.open("rb") as file:
        head = file.read(6)
        for magic, unpack in COMPRESSED.items():
            if head.startswith(magic):
                raise UserError(f"{path}: is compressed, which allows no reading in parallel: {unpack} it first")
        members = [_member(info) for info in tar.entries(file) if not info.isdir()]
    return _of_archive(str(path), members)


def _member(info: tarfile.TarInfo) -> Entry | _Link:
    name = spelled(info.name)
    if info.issym() or info.islnk():
        return _Link(name, spelled(info.linkname), from_root=info.islnk())
    problem = ""
    if info.issparse():
        problem = "stored with holes: make the tar without --sparse"
    elif info.isdev():
        problem = "a pipe or a device, not a file"
    elif not info.isreg():
        problem = f"a member of the unknown kind {info.type.decode('latin-1')!r}"
    return Entry(name, (info.offset_data, info.size), problem)
