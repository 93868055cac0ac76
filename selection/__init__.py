"""Choosing which points to train on, and measuring how far a set of points spreads."""

from entroloop.selection.entropy import Entropy, generalization_score, kl_entropy
from entroloop.selection.neighbours import nearest
from entroloop.selection.strategies import Selection, select

__all__ = ["Entropy", "Selection", "generalization_score", "kl_entropy", "nearest", "select"]
