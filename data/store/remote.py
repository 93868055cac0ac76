"""Remote sealed sets: fetched file by file into a local cache of bounded size; every file is checked on arrival.

    https://host/set · s3://bucket/set · gs://… · "pipe:COMMAND {}"  ->  open_dataset  ->  RemoteDataset, a Dataset

A transfer that stalls, is cut off or delivers bytes that do not match the manifest's SHA-256 is tried again after a
growing pause. All processes of a machine can share the cache. The process that first creates a file's temporary fetches
the file; the others wait for it. The cache must be on a local disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import select
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from entroloop.data import files
from entroloop.data.errors import UserError, reason
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset

ATTEMPTS = 6
TIMEOUT = 30.0  # s without a byte
BACKOFF = 0.5  # s before the second attempt, doubled for each later one
CACHE_BYTES = 20 * 2**30
CHUNK = 2**20


class Refused(Exception):  # noqa: N818 - internal
    """The server answered that the file does not exist or may not be read, so trying again is pointless."""


def is_remote(source: str) -> bool:
    return "://" in source or source.startswith("pipe:")


def open_dataset(source: str, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """A sealed set at a path or remote address. Fetches the manifest of a remote set now, and its shards when needed.

    Raises UserError when the address is wrong or does not lead to a sealed set.
    """
    if not is_remote(source):
        return Dataset(Path(source))
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "entroloop"
    return RemoteDataset(Remote(source, folder, cache_bytes))


@dataclass(frozen=True)
class Remote:
    """A remote folder and the local cache of its files.

    source  an address to which `/NAME` is added, or `pipe:` and a shell command in which `{}` is replaced by the name
    cache   local folder of at most `limit` bytes; the files used least recently are removed first
    """

    source: str
    cache: Path
    limit: int = CACHE_BYTES
    attempts: int = ATTEMPTS
    timeout: float = TIMEOUT
    backoff: float = BACKOFF

    def address(self, name: str) -> str:
        if self.source.startswith("pipe:"):
            return self.source.replace("{}", shlex.quote(name))
        return f"{self.source.rstrip('/')}/{name}"

    def fetch(self, name: str, sha256: str, size: int) -> Path:
        """The local path of the file with these contents. Fetches the file if the cache does not have it.

        Raises UserError, naming the address, when every attempt has failed.
        """
        path = self.cache / f"{sha256}-{Path(name).name}"
        temporary = path.with_name(f"{files.TEMPORARY}{path.name}")
        self.cache.mkdir(parents=True, exist_ok=True)
        seen: tuple[int, int] | None = None
        deadline = 0.0
        while True:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size == size:
                    os.utime(path)  # mark the file as used just now
                    return path
            try:
                file = temporary.open("xb")
            except FileExistsError:
                # Another process is fetching this file. If its temporary stops growing, that process has died or hangs,
                # and this process fetches the file.
                with contextlib.suppress(FileNotFoundError):
                    status = temporary.stat()
                    if (status.st_ino, status.st_size) != seen:
                        seen, deadline = (status.st_ino, status.st_size), time.monotonic() + 2 * self.timeout
                    elif time.monotonic() > deadline:
                        temporary.unlink()
                time.sleep(0.05)
                continue
            with file:
                try:
                    make_room(self.cache, self.limit - size)
                    self._download(name, file, sha256, size)
                    if _is_still(temporary, file):
                        temporary.replace(path)
                finally:
                    if _is_still(temporary, file):
                        temporary.unlink(missing_ok=True)

    def _download(self, name: str, file: IO[bytes], sha256: str, size: int) -> None:
        def once() -> None:
            file.seek(0)
            file.truncate()
            total, digest = 0, hashlib.sha256()
            for chunk in self._chunks(name):
                total += len(chunk)
                if total > size:
                    break
                digest.update(chunk)
                file.write(chunk)
            if total != size:
                raise OSError(f"received {'more than' if total > size else f'only {total} of'} {size} bytes")
            if digest.hexdigest() != sha256:
                raise OSError("the received contents are not the sealed ones (SHA-256 differs)")
            file.flush()

        self._repeat(name, once)

    def text(self, name: str) -> bytes:
        """The bytes of a small file whose digest is not known beforehand."""
        return cast(bytes, self._repeat(name, lambda: b"".join(self._chunks(name))))

    def _repeat(self, name: str, work: Callable[[], Any]) -> Any:
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            try:
                return work()
            except Refused as error:
                raise UserError(f"{self.address(name)}: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                said = reason(error)
        raise UserError(f"{self.address(name)}: could not be fetched in {self.attempts} attempts ({said})")

    def _chunks(self, name: str) -> Iterator[bytes]:
        address = self.address(name)
        if address.startswith("pipe:"):
            return _from_command(address.removeprefix("pipe:"), self.timeout)
        if address.startswith(("http://", "https://")):
            return _from_web(address, self.timeout)
        return _from_library(address)


def _is_still(path: Path, file: IO[bytes]) -> bool:
    """Whether `path` still names the opened file. Another process may have removed it, believing this one dead."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _from_web(address: str, timeout: float) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            missing = int(answer.headers.get("Content-Length", 0))
            while chunk := answer.read(CHUNK):
                missing -= len(chunk)
                yield chunk
            if missing > 0:
                raise OSError(f"the connection ended {missing} bytes early")
    except urllib.error.HTTPError as error:
        if error.code in (408, 425, 429) or error.code >= 500:
            raise
        raise Refused(f"the server answered {error.code} {error.reason}") from error
    except ValueError as error:
        raise Refused(str(error)) from error


def _from_command(command: str, timeout: float) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        try:
            while True:
                if not _readable(descriptor, timeout):
                    raise OSError(f"no byte in {timeout:g} s")
                chunk = os.read(descriptor, CHUNK)
                if not chunk:
                    break
                yield chunk
            if process.wait() != 0:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise OSError(f"exit status {process.returncode}{': ' + said[-1] if said else ''}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _readable(descriptor: int, timeout: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout)[0])


def _from_library(address: str) -> Iterator[bytes]:
    """Reads through fsspec if it and its package for the scheme are installed, else through webdataset's commands."""
    try:
        with _opened(address) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (FileNotFoundError, PermissionError) as error:
        raise Refused(f"cannot be read ({type(error).__name__})") from error


def _opened(address: str) -> Any:
    scheme = address.split("://")[0]
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
        return fsspec.open(address, "rb")
    except (ImportError, ValueError) as error:  # fsspec itself, or what it needs for this scheme, is not installed
        import webdataset.gopen

        if scheme in sys.modules["webdataset.gopen"].gopen_schemes:
            return webdataset.gopen(address)
        raise Refused(f"reading {scheme}: needs fsspec: pip install 'entroloop[remote]' ({reason(error)})") from error


def make_room(cache: Path, limit: int) -> None:
    """Removes the files used least recently until the cache holds at most `limit` bytes.

    A reader can go on reading a removed file that it has open. A removed file that is needed again is fetched again.
    """
    found = []
    for path in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if not path.name.startswith(files.TEMPORARY):
            path.unlink(missing_ok=True)
            total -= size


class RemoteDataset(Dataset):
    """A remote sealed set. Fetches each file when it is first needed."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        raw = remote.text(manifest.MANIFEST)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / manifest.MANIFEST).write_bytes(raw)
            try:
                super().__init__(Path(folder))
            except UserError as error:
                raise UserError(str(error).replace(folder, remote.source)) from error
        self.folder = Path(remote.source)

    def path(self, name: str) -> Path:
        entry = self._sealed[name]
        return self.remote.fetch(name, entry.sha256, entry.bytes)
