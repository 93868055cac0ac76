"""Everything that a configuration names: built in, from an installed package, or the user's own.

    name  ->  Registry.facts  ->  the facts about the thing; a built-in thing is not imported for them
    name  ->  Registry.load   ->  the thing itself

A name is the name of a built-in thing, the name of an entry point of an installed package (group `entroloop.<kind>`,
for example `entroloop.strategies`), or `module:attribute`. Each room lists the facts about its built-in things in its
`catalogue.py`. Those files import neither torch nor diffusers, so reading a configuration or printing help is fast.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from entroloop.data.errors import UserError

OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


@dataclass(frozen=True)
class Facts:
    """The location of a thing: `module:attribute`. Each kind adds the facts that callers need without importing it."""

    target: str


F = TypeVar("F", bound=Facts)


class Registry(Generic[F]):
    """The things of one kind.

    kind      name of the kind in the singular, for messages
    group     name of the group of entry points, without `entroloop.`
    facts_of  class of the facts. A thing that is not built in gives facts that differ from the defaults as attributes
              of the same names
    built_in  facts by name, in the order in which help texts list them
    """

    def __init__(self, kind: str, group: str, facts_of: type[F], built_in: Mapping[str, F]) -> None:
        self.kind, self.group, self.built_in = kind, f"entroloop.{group}", built_in
        self._facts_of = facts_of
        self._loaded: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Built-in names, then the names of entry points."""
        return list(dict.fromkeys([*self.built_in, *self._installed()]))

    def check(self, name: str, *others: str) -> str:
        """Returns the name. Raises UserError, with the nearest name, if nothing has this name.

        A thing that is not built in is imported, so a wrong one is refused before any work begins.

        others  further names that the caller accepts, for the message
        """
        if name not in self.built_in:
            self.load(name, *others)
        return name

    def facts(self, name: str) -> F:
        """The facts about the thing. Loads the thing if it is not built in. Raises UserError as `load` does."""
        if name in self.built_in:
            return self.built_in[name]
        thing = self.load(name)
        own = {f.name: getattr(thing, f.name) for f in fields(self._facts_of) if hasattr(thing, f.name)}
        return self._facts_of(**{k: v for k, v in own.items() if not isinstance(v, property)} | {"target": name})

    def load(self, name: str, *others: str) -> Any:
        """The thing itself. Raises UserError if nothing has this name or its module cannot be imported."""
        if name in self.built_in:
            return built_in(self.built_in[name].target)
        if name not in self._loaded:
            installed = {} if is_own(name) else self._installed()
            if not is_own(name) and name not in installed:
                if ":" in name:
                    raise UserError(f"{self.kind} {name!r} does not exist: give module:attribute")
                raise unknown(self.kind, name, [*others, *self.built_in, *installed], " (your own: module:attribute)")
            self._loaded[name] = _imported(f"{self.kind} {name}", name if is_own(name) else installed[name].value)
        return self._loaded[name]

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}


def built_in(target: str) -> Any:
    """The object at an address `module:attribute` of this project."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def is_own(name: str) -> bool:
    """Whether a name has the form `module:attribute`."""
    return OWN.fullmatch(name) is not None


def hint(
    name: object, known: Iterable[str], otherwise: str = "give one of", listed: Iterable[str] | None = None
) -> str:
    """`did you mean X?`, or a list of names if none is near: of all `known`, or those `listed`."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"{otherwise} {', '.join(names if listed is None else listed)}"


def unknown(kind: str, name: object, known: Iterable[str], more: str = "") -> UserError:
    """The error for a name that nothing has."""
    return UserError(f"{kind} {name!r} does not exist: {hint(name, known)}{more}")


def check_options(what: str, function: Callable[..., Any], options: Iterable[str], *, skip: int) -> None:
    """Raises UserError, with the nearest name, for an option that a function does not accept.

    what  the function in words, for the message
    skip  number of leading parameters of the function that are not options
    """
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    for option in options:
        if option not in known:
            if not known:
                raise UserError(f"{what}: has no options, {option!r} was given")
            raise unknown(f"option of {what}", option, known)


def search_also(folder: Path) -> None:
    """Appends a folder to the import path. Python searches it last, so its modules never hide another module."""
    text = str(folder.absolute())
    if text not in sys.path:
        sys.path.append(text)


def said(error: BaseException) -> str:
    """Type and message of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _imported(what: str, target: str) -> Any:
    """The object that `module:attribute` names. Raises UserError when it cannot be imported."""
    module, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what}: cannot import {module} ({error}): is it beside the configuration file or on PYTHONPATH?"
        ) from error
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        raise UserError(f"{what}: importing {module} raised {said(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{what}: {module} has no {attribute!r}")
        found = getattr(found, part)
    return found
