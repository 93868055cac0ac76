"""Disks and folders that refuse, and commands as a user whom permissions bind, also where the tests run as root."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

NOBODY = 65534


def become_nobody() -> None:
    """Gives up the rights of root for good. For a forked process."""
    importlib.metadata.metadata("torch")  # imports modules that nobody may not read where Python is root's own
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"  # pytest's folders are closed to other users


def _command(arguments: list[str]) -> None:
    from entroloop.launcher.__main__ import main

    become_nobody()
    main(arguments)


def as_nobody(*arguments: object, **environment: Any) -> subprocess.CompletedProcess[str]:
    """Runs `entroloop …` as the user nobody, or as this one where it is not root."""
    return Forked(_command, list(map(str, arguments)), **environment).result()


@contextmanager
def open_folder() -> Iterator[Path]:
    """An empty folder that every user can reach. pytest closes its own folders to other users, again and again."""
    with tempfile.TemporaryDirectory(prefix="open-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            for path in (folder, *folder.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of a few hundred kB, where this process may mount one."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
