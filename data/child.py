"""Ties the life of a child process to that of its parent."""

from __future__ import annotations

import ctypes
import os
import signal

# Loaded before a fork, after which only simple calls are safe. None where the system is not Linux.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Has Linux kill this process when its parent, the process `parent`, ends in any way. Elsewhere does nothing.

    A killed parent cannot end its children itself.
    """
    if _PRCTL is None:
        return
    _PRCTL(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # the parent has ended already
        os._exit(1)
