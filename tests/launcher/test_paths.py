"""Every command with every kind of bad path: one line that names the path, no traceback, no hang, nothing replaced."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
import typer.main
from forked import Forked
from loops import VECTORS, tiny, tiny_file
from places import NOBODY, become_nobody, open_folder

from entroloop.data.world import World
from entroloop.launcher import __main__ as command_line
from entroloop.launcher.run import runner

pytestmark = pytest.mark.slow

READ = {
    "run": ["run", "{}"],
    "run, dry": ["run", "--dry-run", "{}"],
    "run, source": ["run", "{config}", "folder={free}", "data.source={}", "--phase", "prepare"],
    "run, guide": ["run", "{config}", "folder={free}", "sample.guide={}", "sample.guide_weight=2"],
    "sweep": ["sweep", "{}"],
    "status": ["status", "{}"],
    "config": ["config", "{}"],
    "verify": ["verify", "{}"],
    "seal": ["seal", "{}"],
    "report": ["report", "{}", "--out", "{free}/r.csv", "--format", "csv"],
    "import": ["import", "{}", "{free}/imported", "--workers", "1"],
    "select": ["select", "{}", "--size", "3", "--out", "{free}/ids.npy"],
    "select, labels": ["select", "{rows}", "--size", "3", "--out", "{free}/ids.npy", "--labels", "{}"],
    "select, generations": ["select", "{rows}", "--size", "3", "--out", "{free}/ids.npy", "--generations", "{}"],
    "select, reference": [
        "select", "{rows}", "--size", "3", "--out", "{free}/ids.npy", "--strategy", "covariance-matching",
        "--reference", "{}",
    ],
    "entropy": ["entropy", "{}"],
    "measure, generated": ["measure", "{}", "{rows}"],
    "measure, training": ["measure", "{rows}", "{}"],
    "measure, reference": ["measure", "{rows}", "{rows}", "{}"],
    "measure, classifier": ["measure", "{rows}", "{rows}", "--encoder", "classifier", "--classifier", "{}"],
    "sample": ["sample", "{}"],
    "latents": ["latents", "{run}/real/images", "{free}/latents", "--vae", "{}"],
    "slurm script": ["slurm", "script", "{}"],
    "slurm submit": ["slurm", "submit", "{}"],
}  # fmt: skip
WRITTEN = {
    "run, folder": ["run", "{config}", "folder={}", "--phase", "prepare"],
    "run, state": ["run", "{config}", "folder={free}", "--phase", "prepare", "--state", "{}"],
    "run, scratch": ["run", "{config}", "folder={free}", "--scratch", "{}"],
    "report": ["report", "{run}", "--out", "{}"],
    "report, pictures": ["report", "{run}", "--format", "png", "--out", "{}"],
    "import": ["import", "wine", "{}", "--limit", "4", "--workers", "1"],
    "select": ["select", "{rows}", "--size", "3", "--out", "{}"],
}
BAD = ("missing", "missing/x", "text/x", "empty", "empty.npy", "text", "text.npy", "folder", "folder.npy", "loop",
       "dangling", "pipe", "pipe.npy", "device", "closed", "closed.npy", "closed folder", "closed folder/x", "/proc/x",
       "/proc/self/mem", "x" * 300, "name \udcff.npy")  # fmt: skip
NO_PLACE = ("text/x.npy", "loop/x.npy", "pipe/x.npy", "pipe.npy", "device.npy", "closed folder/x.npy",
            "folder.npy", "locked folder/x.npy", "locked folder/new/x.npy", "/proc/x.npy",
            "x" * 300 + ".npy")  # fmt: skip


@pytest.fixture(scope="module")
def finished_vectors(once):
    return once("paths", lambda folder: runner.run(tiny(folder, of=VECTORS), World(), lambda: False))


@pytest.fixture
def place(finished_vectors):
    """A folder with one of each kind of bad path, which a user without rights can reach."""
    with open_folder() as folder:
        shutil.copytree(finished_vectors / "tiny", folder / "run")
        np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32))
        config = tiny_file(folder, of=VECTORS)
        for name in ("empty", "empty.npy", "closed", "closed.npy"):
            (folder / name).write_bytes(b"")
        for name in ("text", "text.npy"):
            (folder / name).write_text("hello: world\n")
        for name in ("folder", "folder.npy", "free", "closed folder", "locked folder"):
            (folder / name).mkdir()
        (folder / "loop").symlink_to("loop")
        (folder / "dangling").symlink_to("nowhere")
        for name in ("pipe", "pipe.npy"):
            os.mkfifo(folder / name)
        for name in ("device", "device.npy"):
            if os.getuid() == 0:
                os.mknod(folder / name, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for name in ("closed", "closed.npy", "closed folder"):
            (folder / name).chmod(0)
        for name in ("folder.npy", "locked folder"):
            (folder / name).chmod(0o555)
        if os.getuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
            os.chown(folder / "free", NOBODY, NOBODY)
        assert config.is_file()
        yield folder


def walk(folder: str, words: list[str], bad: tuple[str, ...], result: str) -> None:
    """In a forked process: the command with each bad path, as a user without rights. Writes (status, out, err) each."""
    place = Path(folder)
    become_nobody()
    os.chdir(place / "free")
    command_line._register()
    setattr(command_line, "app", typer.main.get_command(command_line.app))  # noqa: B010  # made once, not per path
    found = {}
    for name in bad:
        given = {"config": "tiny.yaml", "rows": "rows.npy", "run": "run", "free": "free"}
        path = name if name.startswith("/") else f"{place}/{name}"
        arguments = [word.replace("{}", path) for word in words]
        for key, value in given.items():
            arguments = [word.replace(f"{{{key}}}", f"{place}/{value}") for word in arguments]
        for left in (place / "free").iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        signal.alarm(60)  # a command that hangs is killed, and the test fails
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status: int | str = command_line._run(arguments)
            except BaseException as error:
                status = f"{type(error).__name__}: {error}"
        found[ascii(path)] = status, out.getvalue(), err.getvalue()
    Path(result).write_text(json.dumps(found))


def check(place, words, bad):
    paths = [name if name.startswith("/") else place / name for name in bad]
    before = {path: kind(path) for path in map(Path, paths)}
    result = place / "result.json"
    bad = tuple(name for name in bad if not name.startswith("device") or (place / name).exists())
    ended = Forked(walk, str(place), words, bad, str(result)).result()
    assert ended.returncode == 0, ended.stderr
    for path, (status, out, err) in json.loads(result.read_text()).items():
        told = f"{path}: {status} {err}{out}"
        assert status in (1, 2), told
        (line,) = err.splitlines()
        assert line.startswith("entroloop: "), told
        shown = line.encode(errors="backslashreplace").decode()
        inside = Path(path[1:-1])
        assert any(
            f"{name}" in shown for name in (inside, inside.parent, inside.parent.parent, inside.with_suffix(".json"))
        ), told
        assert "Traceback" not in line, told
        assert " at 0x" not in line, told
        assert "pickle" not in line, told
    assert {path: kind(path) for path in map(Path, paths)} == before


def kind(path):
    try:
        status = path.lstat()
    except OSError as error:
        return error.errno
    return stat.S_IFMT(status.st_mode), status.st_ino


@pytest.mark.parametrize("words", READ.values(), ids=READ)
def test_a_bad_path_to_read_is_one_line(place, words):
    check(place, words, BAD)


@pytest.mark.parametrize("words", WRITTEN.values(), ids=WRITTEN)
def test_a_bad_path_to_write_is_one_line(place, words):
    check(place, words, NO_PLACE)
