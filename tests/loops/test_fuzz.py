"""Changed manifests, rows and configurations of a finished run: every command that reads them ends in one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from damaging import damaged

from entroloop.data.runfolder import Layout
from entroloop.launcher import __main__ as command_line

pytestmark = [pytest.mark.long, pytest.mark.slow]

SECONDS = 60
VALUES: list[Any] = [
    None, True, -1, 0, 1, 0.5, 2**70, -1e300, float("nan"), "", "x", "../..", "a\nb", "\ud800", [], [[]], {}, {"x": {}},
]  # fmt: skip
COMMANDS = (
    ("verify", "{run}"), ("verify", "{run}", "--json"), ("status", "{run}"), ("status", "{run}", "--json"),
    ("config", "{run}"), ("list", "{runs}"), ("run", "{run}/config.yaml", "--dry-run"),
    ("sample", "{run}", "--generation", "1"), ("report", "{run}", "--format", "csv", "--out", "{runs}/report"),
    ("measure", "{run}/generation_0001/samples", "{run}/real/images"), ("slurm", "script", "{run}/config.yaml"),
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside a mapping or list, at any depth."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def changed(raw: bytes, path: Path, draw: random.Random) -> bytes:
    """The file with one value replaced, removed or renamed, or with damaged bytes."""
    if draw.random() < 0.2:
        return damaged(raw, draw)
    text = raw.decode()
    value = (
        yaml.safe_load(text)
        if path.suffix == ".yaml"
        else json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
    )
    found = list(places(value))
    container, key = draw.choice(found)
    match draw.choice(["replace", "replace", "remove", "rename"]):
        case "remove":
            del container[key]
        case "rename" if isinstance(container, dict):
            container[draw.choice(["x", "name", ""])] = container.pop(key)
        case _:
            container[key] = draw.choice(VALUES)
    if path.suffix == ".yaml":
        return yaml.safe_dump(value, allow_unicode=False).encode()
    return json.dumps(value).encode() + b"\n"


@pytest.mark.filterwarnings("ignore")
def test_changed_manifests_and_configurations_never_end_in_a_traceback(finished, tmp_path):
    command_line._register()
    seed = int(os.environ.get("ENTROLOOP_FUZZ_SEED", "0"))
    draw = random.Random(seed)
    shutil.copytree(finished.run, tmp_path / "runs" / "tiny")
    layout = Layout(tmp_path / "runs" / "tiny")
    paths = [layout.config, layout.state, *layout.run.rglob("manifest.json"), *layout.run.rglob("metrics.jsonl")]
    end = time.monotonic() + SECONDS
    for number in itertools.takewhile(lambda n: time.monotonic() < end, itertools.count()):
        path = layout.config if draw.random() < 0.4 else draw.choice(paths)
        raw = path.read_bytes()
        words = [word.format(run=layout.run, runs=layout.run.parent) for word in draw.choice(COMMANDS)]
        told = f"seed {seed}, change {number}: {' '.join(words)} with another {path.relative_to(layout.run)}"
        out, err = io.StringIO(), io.StringIO()
        path.write_bytes(changed(raw, path, draw))
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = command_line._run(words)
        except Exception as error:
            raise AssertionError(f"{told}: not told in one line; the file is {path.read_bytes()!r}") from error
        finally:
            path.write_bytes(raw)
        assert status in (0, 1, 2), told
        assert "Traceback" not in err.getvalue(), told
        if status and words[0] != "verify":  # which lists what it finds
            lines = [line for line in err.getvalue().splitlines() if line.startswith("entroloop: ")]
            assert len(lines) == 1, f"{told}: {err.getvalue()}"
            assert "object at 0x" not in lines[0], told
