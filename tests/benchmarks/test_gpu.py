"""The script for a GPU, on the pretended device, and its supervision of sections."""

import json
import os
import subprocess
import sys
import time

import compiled
import gpu
import pytest


@pytest.mark.slow
def test_a_section_that_hangs_or_fails_costs_its_own_time_only(tmp_path):
    def supervised(code, limit=60.0):
        return gpu.supervise([sys.executable, "-c", code], limit, os.environ, tmp_path / "log")

    assert supervised("pass") == ""
    assert supervised("import sys; print('first', file=sys.stderr); sys.exit('no such device')") == (
        "status 1: no such device"
    )
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    began = time.monotonic()
    assert supervised(child, 1.0) == "did not end within 1 s"
    assert time.monotonic() - began < 60


def test_sections_fit_into_eight_minutes():
    assert sum(section.seconds for section in gpu.SECTIONS) <= gpu.IN_ALL <= 480


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_section_ends_well_on_the_pretended_device(tmp_path):
    if reason := compiled.missing():
        pytest.skip(reason)
    command = [sys.executable, gpu.__file__, "--device", "pretended", "--scale", "tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    logs = "".join(path.read_text()[-1000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:] + logs
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    for section in gpu.SECTIONS:
        mine = [row for row in rows if row["section"] == section.name]
        assert {row["name"]: row["value"] for row in mine}["ended"] == "well", section.name
        assert any(row["unit"] == "verdict" for row in mine) or section.name == "compiled", section.name
    assert all(row.keys() == {"section", "name", "value", "unit"} for row in rows)
    assert not [row for row in rows if row["name"].startswith("left out")]
