"""Train diffusion models on their own samples, generation after generation, without model collapse.

The rooms (`entroloop.data`, `entroloop.selection`, …) are imported when they are first used, so `import entroloop` is
fast.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = ("data", "eval", "launcher", "selection", "slurm", "trainer")

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("entroloop")
    if name in _ROOMS:
        return importlib.import_module(f"entroloop.{name}")
    raise AttributeError(f"module 'entroloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
