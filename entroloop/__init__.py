"""Train diffusion models on their own samples, generation after generation, without model collapse.

`__all__` lists the public names, and docs/python.md describes them. Everything else may change. A name is imported when
it is first used, so `import entroloop` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entroloop.data.encode import encode
    from entroloop.data.store.blocks import load_features
    from entroloop.data.take import take
    from entroloop.launcher.api import Drawn, Run, load_run, run, sample
    from entroloop.launcher.config import Config

    __version__: str

_ROOMS = ("data", "eval", "launcher", "selection", "slurm", "trainer")
_FROM = {
    "Config": "launcher.config",
    "Drawn": "launcher.api",
    "Run": "launcher.api",
    "encode": "data.encode",
    "load_features": "data.store.blocks",
    "load_run": "launcher.api",
    "run": "launcher.api",
    "sample": "launcher.api",
    "take": "data.take",
}

__all__ = [
    "Config", "Drawn", "Run", "__version__", "data", "encode", "eval", "launcher", "load_features", "load_run", "run",
    "sample", "selection", "slurm", "take", "trainer",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("entroloop")
    if name in _ROOMS:
        return importlib.import_module(f"entroloop.{name}")
    if name in _FROM:
        return getattr(importlib.import_module(f"entroloop.{_FROM[name]}"), name)
    raise AttributeError(f"module 'entroloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
