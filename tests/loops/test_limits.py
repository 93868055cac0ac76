"""Full disks and limits of the system, at any point of a command: one line each time, and the work goes on later."""

import os
import resource
import subprocess
from pathlib import Path

import forked
import numpy as np
import pytest
from loops import TINY, sealed_bytes, tiny_file
from places import become_nobody, open_folder, small_disk

from entroloop.launcher import __main__ as program

SHORT = ("generations=1", "train.kimg=0.16", "data.labelled=16", "data.heldout=48")


def limited(limit, value, arguments):
    """For a forked process: runs a command under a limit of the system; one on memory counts from here on."""
    if limit == resource.RLIMIT_AS:
        value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if limit == resource.RLIMIT_NPROC:
        become_nobody()  # root has no such limit
    if limit is not None:
        resource.setrlimit(limit, (value, value))
    program.main(arguments)


def ends_in_one_line(ended):
    """Whether the command succeeded; if not, exactly one line says why, and the status is 1 or 2."""
    if ended.returncode == 0:
        return True
    said = [line for line in ended.stderr.splitlines() if not line.startswith("[")]  # torch's and DeepSpeed's warnings
    assert ended.returncode in (1, 2), ended
    assert len(said) == 1, ended.stderr[-3000:]
    assert said[0].startswith("entroloop: "), ended.stderr
    return False


def command(*arguments, limit=None, value=0):
    return ends_in_one_line(forked.Forked(limited, limit, value, [str(a) for a in arguments]).result())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float32))
    return path


def arguments_of(kind, folder, rows):
    return {
        "run": lambda: ["run", tiny_file(folder, *SHORT, of=TINY)],
        "import": lambda: ["import", "digits", folder / "set", "--shard-size", "500", "--workers", "1"],
        "import vectors": lambda: ["import", rows, folder / "set"],
        "select": lambda: ["select", rows, "--size", "3000", "--strategy", "random", "--out", folder / "ids.npy"],
        "select and write": lambda: ["select", rows, "--size", "300", "--write", folder / "chosen"],
    }[kind]()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["run", "import", "import vectors", "select"])
def test_a_disk_that_is_full_at_any_point(tmp_path, rows, kind):
    failed = 0
    with small_disk(tmp_path / "disk", "16k") as disk:
        arguments = None
        for size in (int(16 * 1.6**i) for i in range(30)):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
            try:
                arguments = arguments or arguments_of(kind, disk, rows)
            except OSError:
                continue
            if command(*arguments):
                break
            failed += 1
            assert not [path for path in disk.rglob("*") if path.name.startswith((".tmp-", ".lease-"))]
        else:
            pytest.fail("never succeeded")
        assert failed
        if kind == "run":
            whole = arguments_of(kind, tmp_path, rows)
            assert command(*whole)
            assert sealed_bytes(disk / "runs" / "tiny") == sealed_bytes(tmp_path / "runs" / "tiny")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["run", "import", "import vectors", "select"])
def test_files_that_are_too_large_at_any_point(tmp_path, rows, kind):
    arguments, failed = arguments_of(kind, tmp_path, rows), 0
    for size in (int(512 * 2**i) for i in range(20)):
        if command(*arguments, limit=resource.RLIMIT_FSIZE, value=size):
            break
        failed += 1
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".tmp-", ".lease-"))]
    assert failed


@pytest.mark.long
@pytest.mark.parametrize("kind", ["run", "import"])
def test_memory_that_ends_at_any_point(tmp_path, rows, kind):
    arguments, failed = arguments_of(kind, tmp_path, rows), 0
    for size in (1 << i for i in range(24, 33)):
        if command(*arguments, limit=resource.RLIMIT_AS, value=size):
            break
        failed += 1
    assert failed


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="becomes a user without processes, which only root may")
@pytest.mark.parametrize("kind", ["run", "import"])
def test_threads_that_end_at_any_point(rows, kind):
    with open_folder() as folder:
        folder.chmod(0o777)
        arguments, failed = arguments_of(kind, folder, rows), 0
        for count in range(1, 40):
            if command(*arguments, limit=resource.RLIMIT_NPROC, value=count):
                break
            failed += 1
        assert failed
