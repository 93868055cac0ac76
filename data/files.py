"""Files that are either whole or absent, also on shared file systems and also when the disk fills up.

Every file is first written under a temporary name of its own in the target folder and forced to disk. It then gets its
final name in one of two ways: `create` hard-links it, so that the first writer wins and nobody ever changes a file that
others may already rely on; `replace` renames it over an earlier version, and `put` does so with bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from entroloop.data.errors import Failed, Interrupted, UserError, unusable

TEMPORARY = ".tmp-"  # every unfinished file starts with this; `sweep_temporaries` and readers of folders rely on it
_fences: list[Callable[[], None]] = []


@contextlib.contextmanager
def fenced(check: Callable[[], None]) -> Iterator[None]:
    """While the context is open, this process calls `check` before it gives any file its name.

    What `check` raises leaves the file unwritten. It must be safe to call from several threads.
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
    """Yields a complete, fsynced temporary file beside `path`; whatever still has that name at the end is removed."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        known = refused.filename not in (None, str(temporary))  # the folder, or a file that is read meanwhile
        raise unusable(refused, refused.filename if known else path) from error
    finally:
        with contextlib.suppress(OSError):  # what is wrong with the folder has been told
            temporary.unlink(missing_ok=True)


def _refusal(error: BaseException | None) -> OSError | None:
    """The operating system's error behind an error: `torch.save` raises one of its own when the disk is full."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def create(path: Path, write: Callable[[IO[bytes]], object]) -> bool:
    """Writes a file that must never change later.

    Returns True if this call made it, False if `path` was already there (it is then left as it is).
    Raises UserError, naming the path, when the operating system refuses it: disk full, read-only, not a folder, …
    """
    with _written(path, write) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            # A file system without hard links: the rename below is atomic, only the race for who is first is lost.
            if path.exists():
                return False
            temporary.rename(path)
    sync_folder(path.parent)
    return True


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file, in one step replacing an earlier version of it. Raises UserError as `create` does."""
    with _written(path, write) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def put(path: Path, content: bytes) -> None:
    """Writes a file of these bytes, in one step replacing an earlier version of it. Raises UserError as `create` does.

    A file that holds these bytes already is left alone, so that finished work can be on a disk that is read-only.
    """
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    replace(path, lambda file: file.write(content))


def add_line(path: Path, value: Any) -> None:
    """Appends a value to a file of JSON lines, which is made if it is not there."""
    _pass_fences()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse fsync on folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path) -> None:
    """Removes what killed processes left behind. Only for a folder whose lease the caller holds."""
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
