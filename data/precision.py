"""Full precision: no TF32, no sums in a reduced precision, anywhere in the process.

    a process of entroloop starts  ->  keep_full_precision          a library call  ->  with full_precision(): ...

Certified distances (`entroloop.selection`) and published feature networks rely on products that are as exact as their
dtype. cuBLAS adds partial bfloat16 products in bfloat16 by default, cuDNN multiplies in TF32, and containers may switch
TF32 on for products of matrices as well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from entroloop.data.errors import UserError

_cuda = torch.backends.cuda.matmul
_OPERATIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
_MATMUL = "float32 products"  # `torch.set_float32_matmul_precision`

_lock = threading.Lock()
_inside = 0  # library calls that have begun and not ended
_before: dict[tuple[Any, str], Any] = {}  # settings to restore after the last of them


def keep_full_precision() -> None:
    """Sets full precision for the rest of the process. Raises UserError as `full_precision` does."""
    with _lock:
        _set()
        _before.clear()


@contextmanager
def full_precision() -> Iterator[None]:
    """Full precision until the last of all calls in this block has left it; then what was set before is restored.

    torch's settings belong to the process: its other threads see them too. Also a decorator of functions.
    Raises UserError where the environment variable NVIDIA_TF32_OVERRIDE forces TF32 and there is a CUDA device.
    """
    global _inside
    with _lock:
        for key, value in _set().items():
            _before.setdefault(key, value)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for (owner, name), value in _before.items():
                    _write(owner, name, value)
                _before.clear()


def check_environment() -> None:
    """Raises UserError where NVIDIA_TF32_OVERRIDE forces TF32, which no setting of torch can undo."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE", "0") not in ("", "0") and torch.cuda.is_available():
        raise UserError(
            "NVIDIA_TF32_OVERRIDE makes the GPU round float32 products to TF32, whatever torch is told: "
            "unset it or set it to 0"
        )


def _set() -> dict[tuple[Any, str], Any]:
    """Sets full precision. -> the settings with their values before; none where all were at full precision."""
    check_environment()
    settings = list(_settings())
    before = {(owner, name): _read(owner, name) for owner, name, _ in settings}
    if all(before[owner, name] == wanted for owner, name, wanted in settings):
        return {}
    for owner, name, wanted in settings:  # all of them, since torch's older settings change its newer ones
        _write(owner, name, wanted)
    return before


def _settings() -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value at full precision) of every setting that this torch has."""
    yield None, _MATMUL, "highest"
    for name in ("bf16_reduced_precision_reduction", "fp16_reduced_precision_reduction", "fp16_accumulation"):
        if hasattr(_cuda, f"allow_{name}"):
            yield _cuda, f"allow_{name}", False
    yield torch.backends.cudnn, "allow_tf32", False  # also where newer settings count: torch refuses to read it else
    if not hasattr(torch.backends.cudnn, "conv"):  # torch before 2.9
        return
    for operation in _OPERATIONS:
        owner: Any = torch.backends
        for part in operation.split("."):
            owner = getattr(owner, part)
        yield owner, "fp32_precision", "ieee"


def _read(owner: Any, name: str) -> Any:
    try:
        return torch.get_float32_matmul_precision() if name == _MATMUL else getattr(owner, name)
    except RuntimeError:  # torch's older and newer settings contradict each other
        return None


def _write(owner: Any, name: str, value: Any) -> None:
    if value is None:
        return
    if name == _MATMUL:
        torch.set_float32_matmul_precision(value)
    else:
        setattr(owner, name, value)
