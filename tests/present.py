"""A value that a test expects to be there."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value. Fails the test if it is None."""
    assert value is not None
    return value
