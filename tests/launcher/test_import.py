"""`import`, `verify` and `seal` as a user types them."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from forked import entroloop
from PIL import Image
from typer.testing import CliRunner

from entroloop.data.errors import UserError
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.launcher.commands.import_ import import_command
from entroloop.launcher.commands.seal import seal_command
from entroloop.launcher.commands.verify import verify_command

app = typer.Typer()
app.command("import")(import_command)
app.command("verify")(verify_command)
app.command("seal")(seal_command)


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(message: str, *arguments: object) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)


def test_import_says_what_it_made_and_that_it_was_there_already(tmp_path: Path):
    result = run("import", "digits", tmp_path / "d", "--limit", 50, "--resolution", 4)
    assert result.exit_code == 0
    assert result.output.strip() == f"{tmp_path / 'd'}: 50 images of 1 x 4 x 4, 10 classes in 1 shard"
    assert "already imported" in run("import", "digits", tmp_path / "d", "--limit", 50, "--resolution", 4).output
    refused("limit 50 there, None now", "import", "digits", tmp_path / "d", "--resolution", 4)
    refused("--split test: digits has no splits", "import", "digits", tmp_path / "e", "--split", "test")
    refused("--part 4::4: give i::n", "import", "digits", tmp_path / "e", "--part", "4::4")
    refused("--workers 0", "import", "digits", tmp_path / "e", "--workers", 0)


def test_import_says_what_it_passes_over_and_seals_the_counts_of_what_is_visible(tmp_path: Path):
    (tmp_path / "src").mkdir()
    for name in ("a.png", ".DS_Store", "notes.txt", "more.txt"):
        Image.new("L", (4, 4)).save(tmp_path / "src" / name, "PNG")
    line = f"{tmp_path / 'd'}: 1 image of 1 x 4 x 4 in 1 shard, "
    told = "3 others ignored (2 of another kind, as more.txt; 1 hidden, as .DS_Store)"
    assert run("import", tmp_path / "src", tmp_path / "d").output.strip() == line + told
    assert manifest.read(tmp_path / "d").about["import"]["ignored"] == {"of another kind": 2}
    (tmp_path / "src" / ".DS_Store").unlink()  # which systems come and go with
    assert (
        "2 others ignored (2 of another kind, as more.txt), already"
        in run("import", tmp_path / "src", tmp_path / "d").output
    )


def test_parts_then_seal(tmp_path: Path):
    for part in ("1::2", "0::2"):
        refused("", "seal", tmp_path / "d")
        assert run("import", "digits", tmp_path / "d", "--shard-size", 600, "--part", part).exit_code == 0
    assert not manifest.is_sealed(tmp_path / "d")
    assert "1,797 images" in run("seal", tmp_path / "d").output
    assert run("seal", tmp_path / "d").exit_code == 0
    assert len(Dataset(tmp_path / "d")) == 1797


def test_verify_names_what_is_damaged_in_a_set_or_below_a_run(tmp_path: Path):
    for name in ("one", "two"):
        run("import", "digits", tmp_path / "run" / name, "--limit", 20)
    good = run("verify", tmp_path / "run")
    assert good.exit_code == 0
    assert "2 sealed folders, 4 files" in good.output
    path = tmp_path / "run" / "two" / "shard-000000.tar"
    raw = bytearray(path.read_bytes())
    raw[3000] ^= 1
    path.write_bytes(raw)
    (tmp_path / "run" / "one" / "shard-000000.json").unlink()
    bad = run("verify", tmp_path / "run", "--json")
    assert bad.exit_code == 2
    facts = json.loads(bad.stdout)
    assert (facts["sealed"], facts["files"]) == (2, 4)
    assert [line.split(": ")[0] for line in facts["problems"]] == [
        str(tmp_path / "run" / "one" / "shard-000000.json"),
        str(path),
    ]
    assert f"{path}: content changed" in run("verify", tmp_path / "run" / "two").output
    (tmp_path / "run" / "one" / "manifest.json").write_text("{")
    assert "damaged manifest" in run("verify", tmp_path / "run").output
    refused("no such folder", "verify", tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    refused("holds nothing sealed", "verify", tmp_path / "empty")


def members(session: int) -> list[str]:
    """The processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, here = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(here) == session and state != "Z":
            found.append(path.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_import_goes_on_to_the_same_bytes(tmp_path: Path, kind: signal.Signals):
    (tmp_path / "src").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "src" / f"{i}.png", compress_level=0)
    options = ["--resolution", 32, "--shard-size", 1, "--workers", 2]
    process = entroloop("import", tmp_path / "src", tmp_path / "out", *options)
    while process.poll() is None and len(list((tmp_path / "out").glob("*.json"))) < 5:
        time.sleep(0.02)
    process.send_signal(kind)
    code = process.wait(timeout=60)
    deadline = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not members(process.pid)  # no worker outlives its parent
    if not manifest.is_sealed(tmp_path / "out"):  # on a fast machine the import may have ended first
        assert code == (75 if kind == signal.SIGTERM else -9)
    assert run("import", tmp_path / "src", tmp_path / "out", "--resolution", 32, "--shard-size", 1).exit_code == 0
    assert run("import", tmp_path / "src", tmp_path / "whole", "--resolution", 32, "--shard-size", 1).exit_code == 0
    files = {
        name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if not p.name.startswith(".")}
        for name in ("out", "whole")
    }
    assert files["out"] == files["whole"]
