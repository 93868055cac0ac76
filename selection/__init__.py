"""Choosing which points to train on, and measuring how far a set of points spreads."""

from entroloop.selection.choose import Selection, select
from entroloop.selection.entropy import Entropy, generalization_score, kl_entropy
from entroloop.selection.neighbours import nearest

__all__ = ["Entropy", "Selection", "generalization_score", "kl_entropy", "nearest", "select"]
