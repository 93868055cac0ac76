"""A finished run on a disk that cannot be written is left alone, and every command that only reads works on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from loops import VECTORS, command, tiny, tiny_file
from places import as_nobody, open_folder, small_disk

from entroloop.data.runfolder import Layout, Step
from entroloop.data.world import World
from entroloop.launcher.run import runner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished_vectors(once):
    return once("paths", lambda folder: runner.run(tiny(folder, of=VECTORS), World(), lambda: False))


@pytest.fixture(params=["mounted read-only", "of another user"])
def locked(request, finished_vectors):
    """Returns (folder with the run `tiny`, folder that can be written, how to run a command)."""
    with open_folder() as place:
        (place / "free").mkdir()
        (place / "free").chmod(0o777)
        if request.param == "of another user":
            if os.getuid() != 0:
                pytest.skip("only root can run a command as another user")
            shutil.copytree(finished_vectors / "tiny", place / "runs" / "tiny")
            yield place / "runs", place / "free", as_nobody
            return
        with small_disk(place / "runs", "8m") as disk:
            shutil.copytree(finished_vectors / "tiny", disk / "tiny")
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            yield disk, place / "free", command


def test_a_finished_run_that_cannot_be_written_is_left_alone_and_readable(locked):
    runs, free, call = locked
    run, out = runs / "tiny", free / "report.html"
    samples, selected = run / "generation_0001" / "samples", run / "generation_0001" / "selected"
    features = run / "generation_0001" / "features"
    for words in (
        ["run", run / "config.yaml", f"folder={runs}"],
        ["run", run / "config.yaml", f"folder={runs}", "--phase", "train", "--generation", "1"],
        ["run", "--dry-run", run / "config.yaml", f"folder={runs}"],
        ["status", run],
        ["status", runs],
        ["verify", run],
        ["verify", samples],
        ["config", run],
        ["sample", run],
        ["seal", run / "real" / "images"],
        ["import", "wine", run / "real" / "images", "--limit", "160", "--shard-size", "32"],
        *([["report", run, "--out", out]] if call is command else []),  # plots need files of Python, maybe of root
        ["report", runs, "--format", "csv", "--out", free / "report.csv"],
        ["measure", samples, selected],
        ["entropy", features],
        ["entropy", samples],
        ["select", features, "--size", "3", "--out", free / "ids.npy"],
    ):
        ended = call(*words)
        assert (ended.returncode, ended.stderr) == (0, ""), words
    assert call is not command or out.stat().st_size


def test_an_unfinished_run_that_cannot_be_written_says_so_in_one_line(finished_vectors):
    with open_folder() as place, small_disk(place / "runs", "8m") as disk:
        shutil.copytree(finished_vectors / "tiny", disk / "tiny")
        layout = Layout(disk / "tiny")
        assert command("run", layout.config, f"folder={disk}").returncode == 0  # saves where it is now
        shutil.rmtree(layout.of(Step(1, "evaluate")))
        before = layout.state.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        ended = command("run", layout.config)
        (line,) = ended.stderr.splitlines()
        assert ended.returncode == 2
        assert line.startswith(f"entroloop: {layout.run}")
        assert "read-only file system: give a path on a disk that can be written" in line
        assert layout.state.read_bytes() == before


def test_state_json_records_the_status_of_the_process_for_a_path_that_is_refused(finished_vectors):
    """Where the operating system refuses a path in the middle of a phase."""
    with open_folder() as place:
        shutil.copytree(finished_vectors / "tiny", place / "runs" / "tiny")
        layout = Layout(place / "runs" / "tiny")
        shutil.rmtree(layout.of(Step(1, "train")))
        path = tiny_file(place, of=VECTORS)
        (place / "scratch").write_text("a file")
        ended = command("run", path, f"folder={place / 'runs'}", "--scratch", place / "scratch", "--state", place / "s")
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        for state in (layout.state, place / "s"):
            found = json.loads(state.read_text())
            assert (found["status"], found["exit"]) == ("failed", 2)
            assert f"entroloop: {found['reason']}" == line


def test_an_input_that_becomes_unreadable_is_recorded_as_the_process_ends(finished_vectors):
    if os.getuid() != 0:
        pytest.skip("only root can run a command as another user")
    with open_folder() as place:
        shutil.copytree(finished_vectors / "tiny", place / "runs" / "tiny")
        layout = Layout(place / "runs" / "tiny")
        shutil.rmtree(layout.of(Step(1, "select")))
        for path in (layout.run, *layout.run.rglob("*")):
            os.chown(path, 65534, 65534)
        block, shard = (
            layout.of(Step(0, "encode")) / "pixel-000000.npy",
            layout.of(Step(0, "sample")) / "shard-000000.tar",
        )
        for closed in (block, shard):
            closed.chmod(0)
            ended = as_nobody("run", layout.config, f"folder={place / 'runs'}")
            (line,) = ended.stderr.splitlines()
            assert ended.returncode in (1, 2)
            assert str(closed) in line
            found = json.loads(layout.state.read_text())
            assert (found["exit"], f"entroloop: {found['reason']}") == (ended.returncode, line)
            closed.chmod(0o755)


def test_a_state_file_that_cannot_be_written_is_refused_before_work(tmp_path: Path):
    path = tiny_file(tmp_path, of=VECTORS)
    (tmp_path / "file").write_text("")
    ended = command("run", path, "--state", tmp_path / "file" / "state.json")
    assert ended.returncode == 2
    assert str(tmp_path / "file") in ended.stderr
    assert not (tmp_path / "runs" / "tiny" / "real").exists()
