"""Writes the pages that are made from the code: `make docs`. A test compares them with what this would write."""

from __future__ import annotations

import ast
from pathlib import Path

from entroloop.launcher.config import Config
from entroloop.launcher.keys import page

ROOT = Path(__file__).parent.parent
ROOMS = ("data", "trainer", "selection", "eval", "slurm", "launcher")


def modules() -> str:
    """docs/modules.md: the first line of every module's docstring, folder by folder."""
    lines = ["# Modules", "", "`make docs` generates this page from the first line of each module's docstring."]
    for room in ROOMS:
        for folder in sorted({path.parent for path in (ROOT / room).rglob("*.py")}):
            lines += ["", f"## {folder.relative_to(ROOT)}/", "", _first_line(folder / "__init__.py"), ""]
            files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            lines += [f"- `{path.name}` {_first_line(path)}" for path in files]
    return "\n".join(lines) + "\n"


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")


def pages() -> dict[Path, str]:
    return {ROOT / "docs/modules.md": modules(), ROOT / "docs/configuration.md": page(Config)}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
