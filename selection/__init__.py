"""Choosing the points to train on, and measuring how far a set of points spreads."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entroloop.selection.choose import Selection, select
    from entroloop.selection.entropy import Entropy, generalization_score, kl_entropy
    from entroloop.selection.neighbours import nearest

__all__ = ["Entropy", "Selection", "generalization_score", "kl_entropy", "nearest", "select"]

_FROM = {
    "Entropy": "entropy",
    "Selection": "choose",
    "generalization_score": "entropy",
    "kl_entropy": "entropy",
    "nearest": "neighbours",
    "select": "choose",
}


def __getattr__(name: str) -> Any:
    """Imports a name at its first use, so that reading a configuration does not import torch."""
    if name in _FROM:
        return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
