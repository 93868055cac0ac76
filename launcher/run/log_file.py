"""The log file of a run: the lines of every attempt with the time, and the traceback of an error."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from entroloop.data.errors import Failed, Interrupted, UserError


class _Lines(logging.FileHandler):
    """A disk that is full or read-only ends the log, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)  # opens the file at the first line
        except OSError:
            self.handleError(record)


@contextlib.contextmanager
def logged(path: Path, *, main: bool) -> Iterator[None]:
    """While open, this process appends its log lines to the file. Only rank 0 (`main`) writes.

    Nothing is added where standard output already goes to this file, as in the runs of a sweep.
    """
    if not main or _is_output(path):
        yield
        return
    handler = _Lines(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except BaseException as error:
        trace = None if isinstance(error, UserError | Failed | Interrupted) else sys.exc_info()
        message = f"ended by {type(error).__name__}: {error}"
        handler.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, trace))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _is_output(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False
