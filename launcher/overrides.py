"""Changes of a configuration on the command line: `section.key=value` texts, as functions of plain values.

values of a file, texts  ->  with_overrides  ->  changed values
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from entroloop.data import yaml12
from entroloop.data.errors import UserError

_GRID = "sweep.grid."


def with_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the values with these keys changed. Raises UserError, naming the key, for anything but `key=value`."""
    values: dict[str, Any] = copy.deepcopy(dict(raw))
    for key, value in map(_split, overrides):
        _set(values, key, parsed(value, key))
    return values


def _split(text: str) -> tuple[str, str]:
    """`section.key=value` -> the key and the value's text. Raises UserError for anything else."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{text}: give overrides as section.key=value, for example train.kimg=96")
    return key.strip(), value


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises UserError for a key that is given twice, by itself or within a section that a later override replaces."""
    given = [_split(text)[0] for text in overrides]
    for key, later in itertools.combinations(given, 2):
        if key == later or key.startswith(f"{later}."):
            again = "again" if key == later else f"by {later}"
            raise UserError(f"{key}: given on the command line, and replaced {again} after it: give it once")


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets values["a"]["b"] for the key `a.b`. The text after `sweep.grid.` is one key, which may contain dots.

    Raises UserError when `a` is not a section.
    """
    if key.startswith(_GRID):
        *sections, last = "sweep", "grid", key.removeprefix(_GRID)
    else:
        *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise UserError(f"{key}: {section} is a value, not a section")
        values = inner
    values[last] = value


def parsed(text: str, key: str) -> Any:
    """Parses the value of an override by the rules of the file. What is no YAML is text, for example `a: b`.

    Raises UserError, naming the key, when a mapping gives a key twice.
    """
    try:
        return yaml12.read(text, key)
    except yaml12.NotYamlError:
        return text
