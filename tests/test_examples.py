"""The examples of the pages that say how to use entroloop run as they are written."""

import re
import shlex
import shutil
from pathlib import Path

import made_by_others
import numpy as np
import pytest
from loops import command

from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent / "docs"
# The examples speak of millions of images, of hundreds of draws, and of an encoder whose weights tests do not have.
SMALLER = {"1000000": "20", "200": "40", "dinov2-small": "test_examples:mean"}


class _Mean:
    dim, digest = 1, "0" * 64

    def __call__(self, samples):
        return samples.reshape(len(samples), -1).mean(1, keepdims=True).astype(np.float32)


mean = _Mean()


def blocks(page, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def run_commands(page):
    """Runs every command of a page in the current folder."""
    lines = [line for block in blocks(page) for line in block.splitlines() if line.startswith("entroloop ")]
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        ended = command(*(SMALLER.get(word, word) for word in words), PYTHONPATH=str(Path(__file__).parent))
        assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files(folder):
    made_by_others.make("tars", folder).rename("generated")
    run_commands("files.md")
    assert Dataset(Path("chosen")).manifest == Dataset(Path("also-chosen")).manifest
    assert manifest.read(Path("both")).about["encoders"].keys() == {"pixel", "test_examples:mean"}
    assert len(Path("names.txt").read_text().splitlines()) == 20
    for block in blocks("files.md", "python"):
        exec(compile(block, "files.md", "exec"), {})
    assert len(Dataset(Path("chosen-in-python"))) == 20


def test_measures(folder):
    rows = np.random.default_rng(0).normal(size=(4, 60, 5)).astype(np.float32)
    for name, x in zip(("ours", "theirs", "training", "heldout"), rows, strict=True):
        np.save(f"{name}.npy", x)
    run_commands("measures.md")


def test_tour(folder):
    exec(compile((DOCS / "tour.py").read_text(), "tour.py", "exec"), {"__name__": "__main__"})
    assert Path("runs/tour/generation_0001/metrics/metrics.jsonl").exists()


def test_command_line(folder, finished):
    shutil.copytree(finished.run, "runs/tiny")
    run_commands("command-line.md")
