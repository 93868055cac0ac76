"""The examples of docs/runs.md run as they are printed, one after the other, in one folder."""

import re
import shlex
from pathlib import Path

import pytest
from loops import command

from entroloop.launcher import __main__ as launcher

PAGE = Path(__file__).parent.parent.parent / "docs" / "runs.md"

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("forked_arms")
def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    for kind, text in blocks:
        if kind == "yaml":
            Path("small.yaml").write_text(text)
        elif kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        else:
            for line in text.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "entroloop", line
                if arguments[0] == "sweep":
                    launcher._register()
                    assert launcher._run(arguments) == 0, line
                else:
                    done = command(*arguments)
                    assert done.returncode == 0, f"{line}: {done.stderr}"
