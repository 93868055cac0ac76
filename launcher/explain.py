"""Configurations in words: why pydantic refuses one (the key as written, the fault and the right form), and where two
differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from entroloop.data.address import shown
from entroloop.data.wording import fault


def explain(error: ValidationError, values: Any, model: type[BaseModel]) -> str:
    """Describes the first error in one line.

    values  what was validated
    model   the class that refused it
    """
    first, *others = sorted(error.errors(), key=lambda one: one["loc"] == ("name",))  # may repeat another key's value
    path, missing = _place(first["loc"], values, last=first["type"] == "missing")
    key = ".".join(path)
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        if key in known_keys(model):  # with dots, as on the command line
            section, _, name = key.rpartition(".")
            return f"{key}: in a file, write it inside its section, {section}: {{{name}: …}}{more}"
        inside = [".".join([*path[:-1], name]) for name in _names(model, path[:-1])]
        near = difflib.get_close_matches(key, [*known_keys(model), *inside], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"keys are {', '.join(inside)}"
        return f"{key}: unknown key; {hint}{more}"
    if missing:
        return f"{key}: missing; give it in the file or as {key}=…{more}"
    words = "holds too few values" if first["type"] == "missing" else fault(first)
    if not key:
        return f"{words}{more}"
    if isinstance(first["input"], Mapping) and re.split(r"[=.:, ]", words)[0] in _names(model, path):
        return f"{key}.{words}{more}"  # a check of the section's own, which begins with one of its keys
    return f"{key}{_shown(first['input'])}: {words}{more}"


def _place(location: Sequence[int | str], values: Any, *, last: bool) -> tuple[list[str], bool]:
    """The keys that lead to an error, and whether the last of them is a key that is missing.

    pydantic's location also holds places in lists and names of types, such as `float`: they are left out.

    last  whether the last part of the location is not among the values
    """
    path: list[str] = []
    for number, part in enumerate(location):
        if isinstance(values, Mapping) and part in values:
            values = values[part]
            path.append(str(part))
        elif isinstance(values, Mapping) and last and number == len(location) - 1:
            return [*path, str(part)], True
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]
    return path, False


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return f"={str(value).lower()}"
    return f"={shown(str(value))}" if isinstance(value, str | int | float) else ""


def _names(model: Any, path: Sequence[str]) -> list[str]:
    """The keys of the section at a path. A section may be in a mapping from any names to sections."""
    for part in path:
        is_section = isinstance(model, type) and issubclass(model, BaseModel)
        model = model.model_fields[part].annotation if is_section else get_args(model)[-1]
    return list(getattr(model, "model_fields", ()))


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every configuration key, dotted."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        yield f"{prefix}{name}"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from known_keys(inner, f"{prefix}{name}.")


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One text `key is x there, y here` per value that differs."""
    found = []
    for name in sorted({*before, *after}):
        a, b = before.get(name), after.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} is {a} there, {b} here")
    return found
