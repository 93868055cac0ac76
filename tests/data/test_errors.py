from __future__ import annotations

import io

import pytest
from PIL import Image, UnidentifiedImageError

from entroloop.data.errors import reason


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
