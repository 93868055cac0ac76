"""The ways a command ends early on purpose. The command line turns them into exit statuses 2, 75 and 1."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """The user's input is wrong. The message is one line that names the key, file or line and says what is right."""


class Interrupted(Exception):  # noqa: N818 - a state, not an error: the work is saved and can go on
    """A signal asked the process to stop. All work so far is on disk, and the same command resumes it."""


class Failed(RuntimeError):  # noqa: N818 - what happened, not a bug of the program
    """The work itself failed, for a reason that fits in one line; a traceback would only hide the reason."""


def reason(error: BaseException) -> str:
    """The text of a library's error, for use in a one-line message: at most 200 characters, no memory addresses.

    An OSError gives its text without number and path. An error without a text gives the name of its type.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = re.sub(r" ?<[^<>]* object at 0x[0-9a-f]+>", "", said).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


_LOST = re.compile("closed by peer|reset by peer|broken pipe|socket closed|remote process exited", re.IGNORECASE)

_LATE = re.compile("timed out waiting|timeout.*collective|collective.*timeout", re.IGNORECASE)


@contextlib.contextmanager
def with_peers(exchange: str) -> Iterator[None]:
    """Turns what gloo and NCCL raise when another process has ended or is late into Failed, naming the exchange."""
    try:
        yield
    except RuntimeError as error:
        said, is_late = str(error), _LATE.search(str(error)) is not None
        if isinstance(error, Failed) or not (is_late or _LOST.search(said)):
            raise
        late = f"did not come to {exchange} in time ({reason(error)})"
        what = late if is_late else f"ended during {exchange}"
        raise Failed(f"another rank {what}: the logs of the other ranks say why; run the same command again") from error


_MEMORY = re.compile(
    "out of memory|can.?t allocate memory|cannot allocate|not enough memory|bad_alloc|could not create a primitive|"
    "ALLOC_FAILED",  # cuBLAS and cuDNN, which allocate beside torch
    re.IGNORECASE,
)
_THREADS = re.compile("can't start new thread|thread.*resource temporarily unavailable", re.IGNORECASE)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, of any library, says that memory does not suffice, on the CPU or on a GPU."""
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or number == errno.ENOMEM or _MEMORY.search(str(error)) is not None


def exhausted(error: BaseException) -> str | None:
    """The one line of an error by which a process has run out of memory or threads; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if lacks_memory(error):
        return (
            f"out of memory ({reason(error)}): lower train.micro_batch or sample.batch, use more processes, or raise "
            "the limit on memory (ulimit -v, slurm.memory)"
        )
    if number == errno.EAGAIN or _THREADS.search(str(error)):
        return (
            f"too many processes and threads ({reason(error)}): raise the limit (ulimit -u), or lower threads, "
            "data.workers or --workers"
        )
    return None


_CURES = {
    errno.ENOENT: "check the path",
    errno.EEXIST: "a folder is needed here: give another path",
    errno.ENOTDIR: "a part of this path is a file: give a path in a folder",
    errno.EISDIR: "give a file",
    errno.EACCES: "check who owns it and its permissions, or give another path",
    errno.EPERM: "check who owns it and its permissions, or give another path",
    errno.EROFS: "give a path on a disk that can be written",
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and run the same command again",
    errno.EMFILE: "raise the limit on open files (ulimit -n) and run the same command again",
    errno.ENFILE: "the machine has too many open files: close some and run the same command again",
    errno.ESTALE: "the file server has replaced it: mount it again and run the same command again",
    errno.EIO: "the disk or file server failed: check it and run the same command again",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its symbolic links lead in a circle: give another path",
}


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write that the operating system refused for want of room


def unusable(error: OSError, path: str | os.PathLike[str] | None = None) -> UserError:
    """The one-line error of a path that the operating system refused: the path, the reason and the cure.

    path  used instead of the path in the OSError, if that is missing or unknown to the user
    """
    given = error.filename if path is None else path
    name = os.fsdecode(given) if isinstance(given, str | bytes | os.PathLike) else "a file"
    said = reason(error)
    cure = _CURES.get(error.errno or 0, "give another path")
    return UserError(f"{name}: {said[:1].lower()}{said[1:]}: {cure}")


def refusal(error: OSError) -> UserError | None:
    """The one-line error of an OSError that is about a file; None for any other, such as that of a connection.

    The operating system names no path when it refuses to read from or write to an open file. The path is then that of
    the innermost open file, or else path, among the variables of the functions in which the error was raised.
    """
    if isinstance(error.filename, str | bytes):
        return unusable(error)
    if error.errno not in _CURES:
        return None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        named = list(frame.f_locals.values())
        opened = [getattr(file, "name", None) for file in named if isinstance(file, io.IOBase)]
        for path in [*opened, *(value for value in named if isinstance(value, Path))]:
            if isinstance(path, Path) or (isinstance(path, str) and not path.startswith("<")):
                return unusable(error, path)
    return None


@contextlib.contextmanager
def naming(**given: object) -> Iterator[None]:
    """Where a UserError begins with an argument's name, the error names the file or option that the user gave for it.

    given  name of the argument -> what the user gave
    """
    try:
        yield
    except UserError as error:
        name, colon, rest = str(error).partition(":")
        if not colon or name not in given:
            raise
        raise UserError(f"{given[name]}:{rest}") from error


@contextlib.contextmanager
def reading(name: str, otherwise: str = "damaged") -> Iterator[None]:
    """Turns any error that a parser raises on a user's file into a UserError, "NAME: OTHERWISE (reason)".

    On a damaged file a parser may raise nearly any error. So the block should do nothing but parse.
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
