"""Files that are either whole or absent, also on shared file systems and when the disk fills up.

Every file is first written under a unique temporary name in the target folder and forced to disk. It then gets its
final name in one of two ways. `create` makes a hard link: the first writer wins, and no file that others may already
use ever changes. `replace` renames the temporary file over an earlier version; `put` does the same with given bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from entroloop.data.errors import Failed, Interrupted, UserError, unusable

TEMPORARY = ".tmp-"  # prefix of every unfinished file; `sweep_temporaries` and readers of folders rely on it
_fences: list[Callable[[], None]] = []


@contextlib.contextmanager
def fenced(check: Callable[[], None]) -> Iterator[None]:
    """While the context is open, this process calls `check` before it gives any file its final name.

    If `check` raises, the file is not written. `check` must be safe to call from several threads.
    """
    _fences.append(check)
    try:
        yield
    finally:
        _fences.remove(check)


def _pass_fences() -> None:
    for check in list(_fences):
        check()


@contextlib.contextmanager
def _written(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """Yields a complete, fsynced temporary file beside `path`. Removes it at the end if it still has that name."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(path)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _pass_fences()
        yield temporary
    except (UserError, Interrupted, Failed):
        raise
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            raise
        known = refused.filename not in (None, str(temporary))  # the folder, or a file that `write` reads
        raise unusable(refused, refused.filename if known else path) from error
    finally:
        with contextlib.suppress(OSError):  # the error above has already said what is wrong with the folder
            temporary.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    """Raises UserError where something other than a file has this name. A rename would replace a device or a pipe."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a device or pipe: give the name of a file")


def check_place(path: Path, given: Path | None = None) -> None:
    """Makes the folder of a file that will be written. Raises UserError when the file cannot be written.

    given  the path that the error names, where the user gave another than the file's
    """
    try:
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unusable(error, given or path) from error


def _refusal(error: BaseException | None) -> OSError | None:
    """The operating system's error behind an error, if any: on a full disk `torch.save` raises an error of its own."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def create(path: Path, write: Callable[[IO[bytes]], object]) -> bool:
    """Writes a file that must never change later.

    Returns True if this call made the file, False if `path` already existed; an existing file does not change.
    Raises UserError, naming the path, when the operating system refuses to write: disk full, read-only, not a folder, …
    """
    with _written(path, write) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            # This file system has no hard links. The rename below is atomic, but two writers may both believe that
            # they were first.
            if path.exists():
                return False
            temporary.rename(path)
    sync_folder(path.parent)
    return True


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file and replaces an earlier version of it in one step. Raises UserError as `create` does."""
    with _written(path, write) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def put(path: Path, content: bytes) -> None:
    """Writes these bytes to a file and replaces an earlier version in one step. Raises UserError as `create` does.

    A file that already holds these bytes is not written again, so finished work can be on a read-only disk.
    """
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    replace(path, lambda file: file.write(content))


def add_line(path: Path, value: Any) -> None:
    """Appends a value to a file of JSON lines. Creates the file if it does not exist. Raises UserError as `create`."""
    _pass_fences()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise unusable(error, error.filename or path) from error


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse fsync on folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path) -> None:
    """Removes temporary files that killed processes left behind. Only for a folder whose lease the caller holds."""
    for path in list(folder.rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, two spaces, one final newline. Equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json_bytes(value)).hexdigest()
