"""`status` shows the phases of a run and the spread gap of every measured generation."""

from present import present

from entroloop.data.runfolder import Step
from entroloop.eval.measures.row import Row
from entroloop.launcher import status


def test_status_shows_the_spread_gap_of_the_rows(finished):
    found = status.inspect(finished.run)
    rows = [(finished.of(Step(g, "evaluate")) / "metrics.jsonl").read_bytes() for g in (0, 1)]
    gaps = {g: Row.from_json(row).value("pixel", "spread_gap") for g, row in enumerate(rows)}
    assert found["spread_gap"] == {"pixel": gaps}
    assert None not in gaps.values()
    head, *lines = status.table(found).splitlines()[1:4]
    assert head.endswith("spread gap (pixel)")
    assert [float(line.split()[-1]) for line in lines] == [round(present(gap), 2) for gap in gaps.values()]


def test_status_of_a_folder_shows_its_runs_and_those_of_its_sweeps(tmp_path):
    for name in ("alone", "sweep/a", "sweep/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("format: 1\ngenerations: 1\n")
    found = status.inspect(tmp_path)
    assert [run["run"] for run in found["runs"]] == ["alone", "sweep/a", "sweep/b"]
    assert "\nsweep/b: not begun\n" in status.table(found)
    assert [run["run"] for run in status.inspect(tmp_path / "sweep")["runs"]] == ["a", "b"]
