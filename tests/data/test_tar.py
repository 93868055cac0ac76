from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entroloop.data.store import tar

NAMES = st.text("abc./-_ 0123456789", min_size=1, max_size=100)


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


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_every_format(format):
    members = [("a.png", b"x"), ("folder " * 13 + "/" + "b" * 90 + ".png", b"y" * 600), ("../ü.cls", b"1")]
    assert list(tar.members(by_tarfile(members, format=format))) == members


def test_links_are_refused_and_directories_passed_over():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("folder/a")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"a"))
        assert list(tar.members(out.getvalue() + bytes(1024))) == [("folder/a", b"a")]
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="link is not a regular file"):
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
