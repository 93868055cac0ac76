"""Files that are either whole or absent, also on shared file systems and when the disk fills up.

Every file is first written under a unique temporary name in the target folder and forced to disk. It then gets its
final name in one of two ways. `create` makes a hard link: the first writer wins, and no file that others may already
use ever changes. `replace` renames the temporary file over an earlier version; `put` does the same with given bytes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from entroloop.data import owners
from entroloop.data.errors import Failed, Interrupted, UserError, unusable

TEMPORARY = ".tmp-"  # prefix of every unfinished file, followed by its owner; readers of folders pass over it
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
def temporary(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` for a file or folder that is not finished. Removes it at the end if it still exists.

    The name contains this process as the owner, so `sweep_temporaries` can remove the file if this process is killed.
    """
    own = path.with_name(f"{TEMPORARY}{owners.me()}-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with owners.beating(own):
            yield own
    finally:
        _remove(own)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a read-only disk; an error of the caller's has already told what is wrong
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """Yields a complete, fsynced temporary file beside `path`. Removes it at the end if it still has that name."""
    try:
        if not path.parent.is_dir():
            _pass_fences()  # the folder of a run that was moved meanwhile is not made again
            path.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(path)
    except OSError as error:
        raise unusable(error, error.filename or path) from error
    with temporary(path) as own, refusals(path, own):
        with own.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _pass_fences()
        yield own


@contextlib.contextmanager
def refusals(path: Path, own: Path) -> Iterator[None]:
    """Turns an error of the operating system, also one behind a library's error, into a UserError that names `path`."""
    try:
        yield
    except (UserError, Interrupted, Failed):
        raise
    except Exception as error:
        refused = _refusal(error, own)
        if refused is None:
            raise
        known = refused.filename not in (None, str(own))  # the folder, or a file that `write` reads
        raise unusable(refused, refused.filename if known else path) from error


def _check_replaceable(path: Path) -> None:
    """Raises UserError where something other than a file has this name. A rename would replace a device or a pipe."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a device or pipe: give the name of a file")


def check_folder(folder: Path) -> None:
    """Raises UserError when there is no folder of that name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file: give a folder' if folder.exists() else 'no such folder'}")


def check_array(path: Path) -> None:
    """Raises UserError when there is no file of that name, where a `.npy` file is needed."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder: give a .npy file' if path.is_dir() else 'no such file'}")


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


def _refusal(error: BaseException | None, own: Path) -> OSError | None:
    """The operating system's error behind an error, if any.

    Libraries raise errors of their own on a full disk, some without the reason. So the system is asked again whether
    it takes more bytes in the unfinished file or folder `own`.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        if told := re.search(r"\(os error (\d+)\)", str(error)):  # as Rust writes it
            return OSError(int(told[1]), os.strerror(int(told[1])))
        error = error.__cause__ or error.__context__
    try:
        if own.exists():
            with (own / "more" if own.is_dir() else own).open("ab") as file:
                file.write(bytes(1 << 16))
    except OSError as refused:
        return refused
    return None


def create(path: Path, write: Callable[[IO[bytes]], object]) -> bool:
    """Writes a file that must never change later.

    Returns True if this call made the file, False if `path` already existed; an existing file does not change.
    Raises UserError, naming the path, when the operating system refuses to write: disk full, read-only, not a folder, …
    """
    with _written(path, write) as own:
        try:
            os.link(own, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            # This file system has no hard links. The rename below is atomic, but two writers may both believe that
            # they were first.
            if path.exists():
                return False
            own.rename(path)
    sync_folder(path.parent)
    return True


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file and replaces an earlier version of it in one step. Raises UserError as `create` does."""
    sweep_temporaries(path.parent, f"-{path.name}", watch=False)
    with _written(path, write) as own:
        own.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` for a new folder, which gets its own name at the end, unless there is an error.

    First removes what killed processes left of it. Raises UserError when another process has made `path` meanwhile.
    """
    sweep_temporaries(path.parent, f"-{path.name}", watch=False)
    with temporary(path) as own:
        yield own
        try:
            own.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise unusable(error, path) from error
            raise UserError(f"{path}: another process has made it meanwhile: choose another name") from error


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
        with path.open("ab") as file:
            before = file.tell()
            try:
                file.write(json.dumps(value).encode() + b"\n")
                file.flush()
            except OSError as error:
                file.truncate(before)  # a line is whole or absent
                file.close()
                raise unusable(error, path) from error
    except OSError as error:
        raise unusable(error, error.filename or path) from error


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines, each with the number of its line; none where there is no file.

    Lines that are not JSON are left out: a process at work, or one that was killed, may have written half a line.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    for number, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError):
            yield number, json.loads(line)


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse fsync on folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path, ending: str = "", *, watch: bool = True) -> None:
    """Removes temporary files and folders, at any depth, whose owners have ended. Never removes those of living owners.

    ending  of their names: with one, only those in `folder` itself
    watch   whether to wait until those of other machines show by their heartbeats that their owners live
    """
    unclear = []
    found = folder.glob(f"{TEMPORARY}*{glob.escape(ending)}") if ending else _temporaries(folder)
    for path in list(found):
        dead = owners.is_dead(path.name[len(TEMPORARY) :].partition("-")[0])
        if dead:
            _remove(path)
        elif dead is None:
            unclear.append(path)
    for path in owners.silent(unclear) if watch else ():
        _remove(path)


def _temporaries(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        mine = [name for name in (*folders, *names) if name.startswith(TEMPORARY)]
        folders[:] = [name for name in folders if name not in mine]
        yield from (Path(here, name) for name in mine)


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
