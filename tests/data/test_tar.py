from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entroloop.data.store import tar

NAMES = st.text("abc./-_ 0123456789", min_size=1, max_size=100).filter(lambda name: not name.endswith("/"))


def written(members) -> bytes:
    out = io.BytesIO()
    tar.write(out, members)
    return out.getvalue()


def by_tarfile(members, **kwargs) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **kwargs) as archive:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return out.getvalue()


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8))
def test_same_bytes_as_tarfile_and_read_back(members):
    raw = written(members)
    assert raw == by_tarfile(members, format=tarfile.USTAR_FORMAT)
    assert list(tar.members(raw)) == members


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE])
def test_what_is_no_file_is_refused(kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
        link = tarfile.TarInfo("b")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="header at byte 512 is damaged, or not that of a file"):
        list(tar.members(out.getvalue()))


def test_every_cut_is_noticed():
    raw = written([("a", b"1" * 700), ("b", b"2")])
    data_end = 512 * 5
    for cut in [*range(0, data_end, 97), 512, 1024, data_end, data_end + 512]:
        with pytest.raises((ValueError, tarfile.TarError)):
            list(tar.members(raw[:cut]))


@given(st.integers(0, 511), st.integers(1, 255))
def test_damaged_headers_are_noticed(at: int, flip: int):
    raw = bytearray(written([("a", b"1")]))
    raw[at] ^= flip
    try:
        assert list(tar.members(bytes(raw))) == [("a", b"1")]  # a blank for a zero in the checksum is as good
    except (ValueError, tarfile.TarError):
        return
    assert 148 <= at < 156


def by_tarfile_alone(raw: bytes) -> list[tuple[str, int, int, int, bytes]]:
    """`entries` without its own reading of plain files."""
    found = []
    file = io.BytesIO(raw)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as archive:
        while (member := archive.next()) is not None:
            found.append(facts(member))
        file.seek(archive.offset)
    rest = file.read()
    if rest.strip(b"\0") or len(rest) < 1024:
        raise ValueError("damaged")
    return found


def facts(member: tarfile.TarInfo) -> tuple[str, int, int, int, bytes]:
    kind = tarfile.REGTYPE if member.isreg() else member.type
    return member.name, member.size, member.offset, member.offset_data, kind


def outcome(read, *arguments):
    try:
        return read(*arguments)
    except (tarfile.TarError, ValueError) as error:
        return str(error) if isinstance(error, tarfile.TarError) else "damaged"


@st.composite
def archives(draw) -> bytes:
    """Files and others, in formats that alternate, with and without pax headers; perhaps damaged or cut."""
    out = io.BytesIO()
    format = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for i in range(draw(st.integers(0, 5))):
            info = tarfile.TarInfo(draw(st.sampled_from(["a", "ü", "b/" * 70 + "c", "d/"])) + str(i))
            info.type = draw(st.sampled_from([tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE]))
            info.mtime = draw(st.sampled_from([0, 1.5]))
            if format == tarfile.PAX_FORMAT:
                info.pax_headers = draw(st.sampled_from([{}, {"comment": "x"}, {"size": "3"}, {"atime": "1.25"}]))
            content = draw(st.binary(max_size=1100)) if info.isreg() else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    raw = bytearray(out.getvalue())
    if draw(st.booleans()):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 3)) == 0 else raw)


@settings(max_examples=400, deadline=None)
@given(archives())
def test_entries_are_those_of_tarfile_also_where_an_archive_is_damaged(raw):
    own = outcome(lambda: [facts(member) for member in tar.entries(io.BytesIO(raw))])
    assert own == outcome(by_tarfile_alone, raw)


def test_plain_files_with_times_are_read_without_tarfile(monkeypatch):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in "abc":
            info = tarfile.TarInfo(name)
            info.mtime = 1.5  # in a pax header, as webdataset writes it
            archive.addfile(info)
    raw = out.getvalue()
    assert b"mtime=1.5" in raw
    read, seen = tarfile.TarInfo.frombuf, []

    def counted(*arguments: Any) -> tarfile.TarInfo:
        seen.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(tarfile.TarInfo, "frombuf", counted)
    assert [member.name for member in tar.entries(io.BytesIO(raw))] == ["a", "b", "c"]
    assert len(seen) <= 3, "the last file's two headers, and the end"
