"""Plain words: pydantic's errors without pydantic's terms, numbers of things, and lines that are said once."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

from entroloop.data.registry import hint

log = logging.getLogger(__name__)

# By the beginning of the type of pydantic's error: the first that fits. `{…}` is a value of the error's context.
_MUST = {
    "int": "must be an integer",
    "float": "must be a number",
    "bool": "must be true or false",
    "string_too_short": "must not be empty",
    "string": "must be text, in quotes if it looks like something else",
    "tuple": "must be a list, for example [1, 2]",
    "list": "must be a list, for example [1, 2]",
    "dict": "must be a mapping, for example {{key: value}}",
    "model": "must be a section, for example {{key: value}}",
    "finite_number": "must be finite",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
    "too_short": "must hold at least {min_length}, holds {actual_length}",
    "too_long": "must hold at most {max_length}, holds {actual_length}",
}


def counted(number: int, noun: str) -> str:
    """A number of things: `1 process`, `2 processes`, `2 more jobs`."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


@functools.cache
def say_once(text: str) -> None:
    """Logs a line once per process."""
    log.info(text)


def fault(error: Mapping[str, Any]) -> str:
    """The fault of one of `ValidationError.errors()`, without the key and the value."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        nearest = hint(error["input"], known, otherwise="")
        return f"must be one of {', '.join(known)}" + (f"; {nearest}" if nearest.endswith("?") else "")
    for beginning, words in _MUST.items():
        if kind.startswith(beginning):
            return words.format(**context)
    said = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{said[:1].lower()}{said[1:]}".replace("input should", "must")
