"""Paths as people write them: expands `~`, `~user`, `$NAME` and `${NAME}` for the user who runs the command."""

from __future__ import annotations

import os
import re
from pathlib import Path

from entroloop.data.errors import UserError

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def expanded(text: str) -> str:
    """The path with the home folder and the values of environment variables in place of `~` and `$NAME`.

    Raises UserError, naming the variable or user, when it is not known. An empty variable counts as not set.
    """
    home = _home(text)

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise UserError(f"the environment variable {name} is not set: set it, or write the path without it")
        return os.environ[name]

    return _VARIABLE.sub(value, home)


def at_home(text: str) -> Path:
    """The path that a command was given, with the home folder in place of `~`; the shell has replaced variables.

    Raises UserError when it is empty, as a variable that is not set leaves it, and when the user is not known.
    """
    if not text:
        raise UserError("an empty path was given: write . for this folder")
    return Path(_home(text))


def _home(text: str) -> str:
    home = os.path.expanduser(text)
    if text.startswith("~") and home == text:
        user = text.partition("/")[0]
        raise UserError(f"no home folder of {user} is known: write the path without ~, or ./{user} for a folder here")
    return home
