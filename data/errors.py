"""The ways a command ends early on purpose. The command line turns them into exit statuses 2, 75 and 1."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class UserError(ValueError):
    """What the user gave is wrong. The message is one line: it names the key, file or line and what would be right."""


class Interrupted(Exception):  # noqa: N818 - a state, not an error: the work is saved and can go on
    """A signal asked the process to stop; everything done so far is on disk and the same command resumes it."""


class Failed(RuntimeError):  # noqa: N818 - what happened, not a bug of the program
    """The work itself failed, for a reason that one line can tell; a traceback would only hide it."""


def reason(error: BaseException) -> str:
    """What a library says, as part of a one-line message: at most 200 characters, without memory addresses.

    An OSError is described without its number and path. An error without a text is described by its type.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = re.sub(r" ?<[^<>]* object at 0x[0-9a-f]+>", "", said).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def reading(name: str, otherwise: str = "damaged") -> Iterator[None]:
    """Turns whatever a parser raises on somebody's file into a UserError, "NAME: OTHERWISE (reason)".

    Parsers of damaged files raise errors of nearly every kind. The block should do nothing else.
    """
    try:
        yield
    except (UserError, Interrupted, Failed):
        raise
    except OSError as error:
        what = otherwise if error.strerror is None else "cannot be read"
        raise UserError(f"{name}: {what} ({reason(error)})") from error
    except Exception as error:
        raise UserError(f"{name}: {otherwise} ({reason(error)})") from error
