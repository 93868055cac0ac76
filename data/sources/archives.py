"""Lists the entries of a zip archive or a tar without unpacking it, and follows the links in it.

path of an archive  ->  of_zip | of_tar  ->  Listing
"""

from __future__ import annotations

import contextlib
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

from entroloop.data.errors import UserError, reading
from entroloop.data.sources.listing import Entry, Listing, is_hidden, spelled, twice
from entroloop.data.store import tar

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


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
        first = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
        if first is not None:
            hidden["/".join(parts[: first + 1])] = None
        elif path in entries:  # `./a` and `a` are the same file
            raise twice(where, member.name)
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
