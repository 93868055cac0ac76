"""`verify` names what a bad copy of a run has lost, changed or cannot read, and passes over nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import typer
from loops import VECTORS, tiny
from places import as_nobody, open_folder
from typer.testing import CliRunner

from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.store import manifest
from entroloop.data.world import World
from entroloop.launcher.commands.verify import verify_command
from entroloop.launcher.run import runner
from entroloop.launcher.run.recipes import steps


@pytest.fixture(scope="module")
def made(once):
    def make(folder: Path) -> None:
        runner.run(tiny(folder, of=VECTORS), World(), lambda: False)

    return Layout(tiny(once("intact", make), of=VECTORS).run_folder)


@pytest.fixture
def layout(made, tmp_path):
    shutil.copytree(made.run, tmp_path / "tiny")
    return Layout(tmp_path / "tiny")


def verified(folder: Path) -> tuple[int, list[str]]:
    app = typer.Typer()
    app.command()(verify_command)
    ended = CliRunner().invoke(app, [str(folder), "--json"])
    return ended.exit_code, json.loads(ended.stdout)["problems"]


STEPS = [*steps(2)]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("lost", ["manifest", "folder"])
def test_a_lost_seal_is_named_whichever_it_is(layout, step, lost):
    folder = layout.of(step)
    shutil.rmtree(folder) if lost == "folder" else (folder / manifest.MANIFEST).unlink()
    code, problems = verified(layout.run)
    assert code == 2
    assert [line for line in problems if line.startswith(f"{folder}: not sealed, but ")]
    assert all(line.startswith(str(folder)) for line in problems)


@pytest.mark.parametrize("name", ["real/images", "generation_0000", "generation_0001", "real"])
def test_a_lost_folder_of_any_height_is_named(layout, name):
    shutil.rmtree(layout.run / name)
    code, problems = verified(layout.run)
    assert code == 2
    assert all(f"{layout.run / name}" in line.partition(": ")[0] for line in problems)
    assert problems


def test_a_run_of_which_only_the_records_were_copied_lacks_every_step(layout):
    for path in layout.run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    code, problems = verified(layout.run)
    assert (code, len(problems)) == (2, len(STEPS))


def test_without_records_the_seals_name_what_they_were_made_from(layout):
    layout.state.unlink()
    for generation in (-1, 0, 1):
        layout.stats(generation).unlink()
    assert verified(layout.run) == (0, [])
    shutil.rmtree(layout.of(PREPARE))
    shutil.rmtree(layout.of(Step(0, "encode")))
    code, problems = verified(layout.run)
    assert code == 2
    assert {line.partition(":")[0] for line in problems} == {
        str(layout.of(PREPARE)), str(layout.of(Step(0, "encode")))
    }  # fmt: skip


def test_a_lost_configuration_is_named_and_the_seals_are_still_compared(layout):
    layout.config.unlink()
    (line,) = verified(layout.run)[1]
    assert line.startswith(f"{layout.config}: missing")
    shutil.rmtree(layout.of(Step(0, "train")))
    code, problems = verified(layout.run)
    assert code == 2
    assert any(line.startswith(f"{layout.of(Step(0, 'train'))}: not sealed") for line in problems)
    code, problems = verified(layout.run.parent)  # a folder of runs
    assert any(line.startswith(f"{layout.config}: missing") for line in problems)
    assert verified(layout.of(Step(0, "sample")))[0] == 2  # its weights are lost; that it is of a run is known


def test_an_unfinished_run_lacks_nothing(tmp_path):
    config = tiny(tmp_path, of=VECTORS)
    runner.run(config, World(), lambda: False, until=Step(0, "train"))
    layout = Layout(config.run_folder)
    (layout.of(Step(0, "sample"))).mkdir(exist_ok=True)
    assert verified(layout.run) == (0, [])
    assert "generations" not in json.loads(layout.state.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed",
    [
        "generation_0000/samples", "generation_0001", "real/images/manifest.json", "config.yaml", "real/stats.jsonl",
        "state.json", "generation_0000/weights/mlp.safetensors", "generation_0001/selected/removed.json",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_and_the_rest_is_checked(made, closed):
    """As another user, whose permissions bind."""
    with open_folder() as folder:
        run = folder / "tiny"
        shutil.copytree(made.run, run)
        path, damaged = run / closed, run / "generation_0000/metrics/metrics.jsonl"
        if closed.endswith("removed.json"):
            path.write_text('{"removed": []}')
        assert as_nobody("verify", run).returncode == 0
        path.chmod(0)
        ended = as_nobody("verify", run, "--json")
        problems = json.loads(ended.stdout)["problems"]
        assert (ended.returncode, ended.stderr) == (1, ""), problems
        assert any(line.startswith(str(path)) and line.endswith("(Permission denied)") for line in problems)
        os.truncate(damaged, 3)
        ended = as_nobody("verify", run)
        assert ended.returncode == 2
        lines = ended.stderr.splitlines()
        assert any(line.startswith(f"{damaged}: 3 bytes instead of") for line in lines)
        assert any(line.startswith(str(path)) for line in lines)
        assert all(line.startswith(str(run)) for line in lines)
