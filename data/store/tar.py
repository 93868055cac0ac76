"""Tar files of small members, written and read without tarfile's cost per member, ten times the cost of copying.

members  ->  write    ->  bytes equal to tarfile's USTAR format with time and owner 0
bytes    ->  members  ->  (name, payload); every header is checked, and a file that was cut anywhere is refused
a file   ->  entries  ->  every entry of a tar that any program wrote
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

BLOCK = 512
RECORD = 20 * BLOCK
_OCTAL = re.compile(rb" *[0-7]+[ \0]*")
_TIMES_AND_OWNERS = re.compile(rb"(\d+ ([amc]time|[ug]id|[ug]name)=[^\n]*\n)+")
_FIELDS = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" + b"0" * 11 + b"\0"
_REST = b" 0" + bytes(100) + b"ustar\x0000" + bytes(64 + 8 + 8 + 155 + 12)


def write(file: IO[bytes], members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a whole archive. Names are at most 100 bytes of ASCII."""
    written = 0
    for name, payload in members:
        raw_name = name.encode("ascii")
        assert len(raw_name) <= 100
        head = raw_name.ljust(100, b"\0") + _FIELDS % len(payload)
        # The checksum is the sum of the header's bytes, with eight blanks in place of the checksum. _REST already holds
        # one of these blanks.
        total = sum(head) + sum(_REST) + 7 * 32
        file.write(b"".join((head, b"%06o\0" % total, _REST, payload, bytes(-len(payload) % BLOCK))))
        written += BLOCK + len(payload) + -len(payload) % BLOCK
    end = 2 * BLOCK
    file.write(bytes(end + -(written + end) % RECORD))


def members(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, payload) of every file of an archive that `write` made, in order.

    Raises ValueError when the archive is damaged, cut short or holds anything but files.
    """
    file, at = io.BytesIO(raw), 0
    while (member := _plain(file, at)) is not None:
        end = member.offset_data + member.size
        if end > len(raw):
            raise ValueError(f"{member.name} is cut short")
        yield member.name, raw[member.offset_data : end]
        at = end + -member.size % BLOCK
    rest = raw[at:]
    if any(rest[:BLOCK]):
        raise ValueError(f"header at byte {at} is damaged, or not that of a file")
    if any(rest) or len(rest) < 2 * BLOCK:
        raise ValueError("the archive's end mark is damaged or missing")


def places(raw: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(name, first byte, size, CRC-32) of every file of an archive that `write` made."""
    at = 0
    for name, payload in members(raw):
        yield name, at + BLOCK, len(payload), zlib.crc32(payload)
        at += BLOCK + len(payload) + -len(payload) % BLOCK


def entries(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Every entry of an archive, from the start of a seekable file.

    Plain files are read without tarfile. At the first other header, tarfile reads the last plain file once more and
    then the rest, so errors are the same as those of tarfile alone.

    Raises ValueError, or tarfile.TarError, when the archive is damaged, cut short, or goes on after its end mark.
    (tarfile alone treats a header that it cannot read as the end.) In a name that is not UTF-8, the bytes become
    `\\x..`.
    """
    last, at = -1, 0
    while (member := _plain(file, at)) is not None:
        yield member
        last, at = at, member.offset_data + member.size + -member.size % BLOCK
    file.seek(max(last, 0))
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as archive:
        while (member := archive.next()) is not None:
            cast("Any", archive).members.clear()  # tarfile would keep all entries, at a kilobyte per entry
            if member.offset > last:
                yield member
        file.seek(archive.offset)
    zeros = 0
    while rest := file.read(2**20):
        if rest.strip(b"\0"):
            ended = zeros or not any(rest[:BLOCK])
            raise ValueError(
                "it goes on after its end mark; `tar -A` joins tars"
                if ended
                else f"header at byte {archive.offset} is damaged"
            )
        zeros += len(rest)
    if zeros < 2 * BLOCK:
        raise ValueError("it lacks the end mark")


def _plain(file: IO[bytes], at: int) -> tarfile.TarInfo | None:
    """The file whose header, or whose pax header, begins at byte `at`. None unless all of its facts are plain.

    The pax header of a plain file gives times and owners alone. The name is in one field, and numbers are octal.
    """
    file.seek(at)
    start, head = at, file.read(BLOCK)
    if head[156:157] == b"x" and (size := _size(head)) is not None:
        records = file.read(size + -size % BLOCK)[:size]
        if len(records) < size or not _TIMES_AND_OWNERS.fullmatch(records):
            return None
        start, head = at + BLOCK + size + -size % BLOCK, file.read(BLOCK)
    size, name = _size(head), head[:100].partition(b"\0")[0]
    if size is None or head[156:157] not in (b"0", b"\0") or any(head[345:500]) or name[-1:] in (b"", b"/"):
        return None
    member = tarfile.TarInfo(name.decode("utf-8", "backslashreplace"))
    member.size, member.offset, member.offset_data = size, at, start + BLOCK
    return member


def _size(head: bytes) -> int | None:
    """The size in a header; None if the header is cut short or damaged, or the size is not octal."""
    if len(head) < BLOCK or not _OCTAL.fullmatch(head, 124, 136) or not _OCTAL.fullmatch(head, 148, 156):
        return None
    if int(head[148:156].strip(b" \0") or b"-1", 8) != sum(head) - sum(head[148:156]) + 256:
        return None
    return int(head[124:136].strip(b" \0"), 8)
