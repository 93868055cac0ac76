"""The configurations that are installed with entroloop, found by name: `entroloop run digits`."""

from __future__ import annotations

from pathlib import Path

from entroloop.data.errors import UserError

DEMO = "demo"
# Beside the rooms, both in a clone and where a wheel installs them.
_FOLDER = Path(__file__).parent.parent / "configs"


def names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def file_of(name: str) -> Path | None:
    """The file of a packaged configuration; None where there is none of this name."""
    return _FOLDER / f"{name}.yaml" if name in names() else None


def configuration(path: Path) -> Path:
    """The file itself where it exists, else the packaged configuration of this name; UserError without either."""
    found = path if path.is_file() else file_of(str(path))
    if found is None:
        packaged = ", ".join(names())
        raise UserError(f"{path}: no such configuration file, and none of the packaged configurations ({packaged})")
    return found
