from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from entroloop.data.errors import UserError, naming, reason, refusal


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \n"), "one"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 300), "x" * 200),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "No such file or directory"),
        (OSError("broken data stream"), "broken data stream"),
    ],
)
def test_a_librarys_error_in_one_line(error: Exception, said: str):
    assert reason(error) == said


def test_no_address_of_an_object_is_told():
    with pytest.raises(UnidentifiedImageError, match=" at 0x") as caught:
        Image.open(io.BytesIO(b"no image"))
    assert reason(caught.value) == "cannot identify image file"


@pytest.mark.parametrize("read", [Path.read_bytes, Path.read_text, lambda path: path.open("rb").read()])
def test_an_error_of_a_read_names_its_file(read):
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(Path("/proc/self/mem"))
    assert caught.value.filename is None
    assert str(refusal(caught.value)).startswith("/proc/self/mem: input/output error: the disk or file server failed")


def test_a_stale_handle_names_its_file_and_the_cure():
    def read(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale") as caught:
        read(Path("/mnt/x"))
    assert str(refusal(caught.value)) == (
        "/mnt/x: stale file handle: the file server has replaced it: mount it again and run the same command again"
    )


def test_errors_of_connections_and_without_a_file_are_no_refusals():
    assert refusal(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
    assert refusal(OSError("said by a library")) is None
    assert refusal(OSError(errno.EIO, "Input/output error")) is None


def test_an_argument_is_named_by_what_the_user_gave():
    for said, told in (("features: row 3", "a.npy: row 3"), ("other: row 3", "other: row 3"), ("features", "features")):
        with pytest.raises(UserError) as caught, naming(features="a.npy"):
            raise UserError(said)
        assert str(caught.value) == told
