"""Addresses of remote sets: recognises them, and keeps credentials out of everything that is written.

    https://host/set · s3://bucket/set · gs://… · "pipe:COMMAND {}"  ->  check  ->  an address without credentials

A run stores the address of its source in its configuration and shows it in messages. So an address must not contain a
credential, and messages hide the credentials of the environment.
"""

from __future__ import annotations

import os
import re

from entroloop.data.errors import UserError

SHORTEST = 6  # characters; shorter values of environment variables are no credentials
_SECRET_NAME = re.compile("KEY|SECRET|TOKEN|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_WRITTEN = r"""(?!["']?\$)["']?[^\s"'&$]{6,}"""  # a literal value, not a variable of the shell
_IN_COMMAND = re.compile(
    rf"""://[^/\s"'@:]+:(?!\$)[^/\s"'@]+@
    | \b(?:bearer|basic)\s+{_WRITTEN}
    | \b[\w-]*(?:token|password|passwd|secret|signature|api[_-]?key|access[_-]?key(?:[_-]?id)?|credential|sig)
      (?:=|:\s*){_WRITTEN}
    | (?:\s-u|--user|--proxy-user)[\s=]*["']?[^\s"':]+:(?!\$)[^\s"']+""",
    re.IGNORECASE | re.VERBOSE,
)


def is_remote(source: str) -> bool:
    return "://" in source or source.startswith("pipe:")


def check(source: str) -> str:
    """Returns the source. Raises UserError, without naming the credential, when a remote source contains one."""
    if source.startswith("pipe:"):
        if _IN_COMMAND.search(source):
            raise UserError(
                "pipe: the command contains a credential, which would be stored with the run: put the credential into "
                "an environment variable and write $NAME in the command"
            )
    elif is_remote(source):
        scheme, _, rest = source.partition("://")
        host = rest.partition("/")[0]
        port = host.partition(":")[2]
        login = "@" in host or (port and not port.isdecimal())  # the rest of a password that contains a slash
        if login or "?" in rest:
            raise UserError(
                f"{scheme}: the address contains {'a credential' if login else 'a query (?…)'}, which would be "
                "stored with the run: leave that out and give credentials in ~/.netrc (https:) or in the environment "
                "variables of the service"
            )
    return source


def shown(source: str) -> str:
    """A source as messages show it: `…` if it contains a credential."""
    try:
        return check(source)
    except UserError:
        return "…"


def hidden(text: str) -> str:
    """The text with `…` in place of every value of an environment variable whose name is that of a credential."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "…")
    return text
