"""Remote sealed sets: fetched file by file into a local cache of bounded size; every file is checked on arrival.

    https://host/set · s3://bucket/set · gs://… · "pipe:COMMAND {}"  ->  open_dataset  ->  RemoteDataset, a Dataset

A transfer that stalls, is cut off or delivers bytes that do not match the manifest's SHA-256 is tried again after a
growing pause. All processes of a machine can share the cache. One of them fetches a file, and the others wait for it.
The cache must be on a local disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from entroloop.data import address as addresses
from entroloop.data import files
from entroloop.data.address import is_remote
from entroloop.data.errors import UserError, reason
from entroloop.data.store import manifest, transfer
from entroloop.data.store.dataset import Dataset

CACHE_BYTES = 20 * 2**30
LOCK = ".lock"  # ending of the files by which processes take turns, for files whose SHA-256 begin with the same byte


def open_dataset(source: str, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """A sealed set at a path or remote address. Fetches the manifest of a remote set now, and its shards when needed.

    Raises UserError when the address is wrong, contains a credential, or does not lead to a sealed set.
    """
    if not is_remote(addresses.check(source)):
        return Dataset(Path(source))
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "entroloop"
    return RemoteDataset(Remote(source, folder, cache_bytes))


@dataclass(frozen=True)
class Remote:
    """A remote folder and the local cache of its files.

    source   an address to which `/NAME` is added, or `pipe:` and a shell command in which `{}` is replaced by the name
    cache    local folder of at most `limit` bytes; the files used least recently are removed first
    timeout  seconds without a byte after which an attempt ends
    backoff  seconds before the second attempt, doubled for each later one
    """

    source: str
    cache: Path
    limit: int = CACHE_BYTES
    attempts: int = 6
    timeout: float = 30.0
    backoff: float = 0.5

    def address(self, name: str) -> str:
        if self.source.startswith("pipe:"):
            return self.source.replace("{}", shlex.quote(name))
        return f"{self.source.rstrip('/')}/{name}"

    def fetch(self, name: str, sha256: str, size: int) -> Path:
        """The local path of the file with these contents. Fetches the file if the cache does not have it.

        Raises UserError, naming the address, when every attempt has failed.
        """
        path = self.cache / f"{sha256}-{Path(name).name}"
        if not _is_whole(path, size):
            from filelock import FileLock  # here, because it starts slowly and few sets are remote

            self.cache.mkdir(parents=True, exist_ok=True)
            with FileLock(self.cache / f"{sha256[:2]}{LOCK}"):  # the kernel frees the lock of a process that dies
                if not _is_whole(path, size):  # another process may have fetched it meanwhile
                    make_room(self.cache, self.limit - size)
                    self._download(name, path, sha256, size)
        return path

    def _download(self, name: str, path: Path, sha256: str, size: int) -> None:
        temporary = path.with_name(f"{files.TEMPORARY}{path.name}")

        def once() -> None:
            total, digest = 0, hashlib.sha256()
            with temporary.open("wb") as file:
                for chunk in transfer.chunks(self.address(name), self.timeout):
                    total += len(chunk)
                    if total > size:
                        break
                    digest.update(chunk)
                    file.write(chunk)
            if total != size:
                raise OSError(f"received {'more than' if total > size else f'only {total} of'} {size} bytes")
            if digest.hexdigest() != sha256:
                raise OSError("the received contents are not the sealed ones (SHA-256 differs)")

        try:
            self._repeat(name, once)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def text(self, name: str) -> bytes:
        """The bytes of a small file whose digest is not known beforehand."""
        return cast(bytes, self._repeat(name, lambda: b"".join(transfer.chunks(self.address(name), self.timeout))))

    def _repeat(self, name: str, work: Callable[[], Any]) -> Any:
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            try:
                return work()
            except transfer.Refused as error:
                raise UserError(f"{self.address(name)}: {addresses.hidden(str(error))}") from error
            except (OSError, http.client.HTTPException) as error:
                said = addresses.hidden(reason(error))
        raise UserError(f"{self.address(name)}: could not be fetched in {self.attempts} attempts ({said})")


def _is_whole(path: Path, size: int) -> bool:
    """Whether the cache has this file. Marks the file as used just now."""
    try:
        os.utime(path)
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


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
        if not (path.name.startswith(files.TEMPORARY) or path.name.endswith(LOCK)):
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
