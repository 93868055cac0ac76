import json
import shutil
from pathlib import Path

import pytest
from loops import command, tiny

from entroloop.data.errors import UserError
from entroloop.eval.measures.row import Row
from entroloop.eval.report.runs import Run
from entroloop.launcher import status
from entroloop.launcher.config import dump


def test_runs_with_their_state_next_step_and_last_row(finished, tmp_path):
    shutil.copytree(finished.run, tmp_path / "sweep" / "whole")
    shutil.copytree(finished.run, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "generation_0001" / "features")
    shutil.rmtree(tmp_path / "stopped" / "generation_0001" / "metrics")
    (tmp_path / "stopped" / "state.json").write_text('{"status": "interrupted", "exit": 75, "reason": "a signal"}')
    for name, content in (("new", dump(tiny(tmp_path, "name=new"))), ("broken", b"generations: [")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_bytes(content)
    found = {run["run"]: run for run in json.loads(command("list", tmp_path, "--json").stdout)}
    assert {name: (run["status"], run["next"]) for name, run in found.items()} == {
        "broken": ("damaged", None),
        "new": ("not begun", "prepare"),
        "stopped": ("interrupted", "generation 1 encode"),
        "sweep/whole": ("finished", None),
    }
    assert [found[name]["row"]["generation"] for name in ("stopped", "sweep/whole")] == [0, 1]
    assert found["new"]["row"] is None
    table = command("list", tmp_path).stdout.splitlines()
    assert table[0].split()[:5] == ["run", "state", "next", "measured", "encoder"]
    row = next(line for line in table if line.startswith("sweep/whole"))
    distance = found["sweep/whole"]["row"]["measures"]["pixel"]["frechet_distance"]
    assert row.split()[:5] == ["sweep/whole", "finished", "1", "pixel", f"{distance:.4g}"]
    assert next(line for line in table if line.startswith("broken: ")).startswith(f"broken: {tmp_path / 'broken'}")
    assert status.listed(tmp_path / "sweep" / "whole")[0]["run"] == "whole"
    with pytest.raises(UserError, match="holds no run"):
        status.listed(tmp_path / "sweep" / "whole" / "real")


def test_the_encoder_that_selects_is_shown():
    row = {"generation": 0, "measures": {name: {"frechet_distance": i} for i, name in enumerate("abc")}}
    rows = (Row.model_validate({"provenance": {}, **row}),)
    for selecting, shown in (("b", "b"), ("not measured", "a")):
        run = Run(Path("r"), "r", {"selection.encoder": selecting}, rows, None, ())
        assert status._shown(run) == shown
    listed = {"run": "r", "status": "finished", "reason": "", "next": None, "row": row, "shown": "b", "vectors": False}
    assert status.list_table([listed]).splitlines()[1].split() == ["r", "finished", "0", "b", "1"]


def test_a_finished_run_says_so(finished):
    ended = command("run", finished.config)
    assert ended.returncode == 0
    assert ended.stdout.strip() == f"{finished.run}: already finished"
