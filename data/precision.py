"""Full precision: no TF32, no sums in a reduced precision, anywhere in the process.

    a process of entroloop starts  ->  keep_full_precision          a library call  ->  with full_precision(): ...

Certified distances (`entroloop.selection`) and published feature networks need products that are as exact as their
dtype. By default cuBLAS adds partial bfloat16 products in bfloat16, and cuDNN multiplies in TF32. Some containers also
switch TF32 on for matrix products.
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
_inside = 0  # library calls now in progress
_before: dict[tuple[Any, str], Any] = {}  # settings to restore when the last of these calls ends


def keep_full_precision() -> None:
    """Sets full precision for the rest of the process. Raises UserError as `full_precision` does."""
    with _lock:
        _set()
        _before.clear()


@contextmanager
def full_precision() -> Iterator[None]:
    """Sets full precision. When the last of all concurrent blocks ends, restores the earlier settings.

    torch's settings belong to the process, so its other threads see them too. Also works as a decorator of functions.
    Raises UserError if the environment variable NVIDIA_TF32_OVERRIDE forces TF32 and there is a CUDA device.
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


def is_full() -> bool:
    """Whether all settings are at full precision now."""
    return all(_read(owner, name) == wanted for owner, name, wanted in _settings())


def check_environment() -> None:
    """Raises UserError if NVIDIA_TF32_OVERRIDE forces TF32, which no setting of torch can undo."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE", "0") not in ("", "0") and torch.cuda.is_available():
        raise UserError(
            "NVIDIA_TF32_OVERRIDE makes the GPU round float32 products to TF32, whatever torch is told: "
            "unset it or set it to 0"
        )


def _set() -> dict[tuple[Any, str], Any]:
    """Sets full precision. Returns the earlier values of the settings, or {} if all were at full precision already."""
    check_environment()
    settings = list(_settings())
    if is_full():
        return {}
    before = {(owner, name): _read(owner, name) for owner, name, _ in settings}
    for owner, name, wanted in settings:  # write all of them, because torch's older settings change its newer ones
        _write(owner, name, wanted)
    return before


def _settings() -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value at full precision) of every setting that this torch has."""
    yield None, _MATMUL, "highest"
    for name in ("bf16_reduced_precision_reduction", "fp16_reduced_precision_reduction", "fp16_accumulation"):
        if hasattr(_cuda, f"allow_{name}"):
            yield _cuda, f"allow_{name}", False
    yield torch.backends.cudnn, "allow_tf32", False  # also in a torch with newer settings: reading it fails otherwise
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
