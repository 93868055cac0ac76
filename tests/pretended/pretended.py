"""A pretended CUDA device: tensors say `cuda:0`, and the CPU computes.

    ENTROLOOP_PRETENDED=library python -m pytest -p pretended device_….py      (see test_pretended.py)

The library, which is made from guard.cpp, must be loaded before torch is, so this module is loaded as a plugin of
pytest, in a process of its own. `torch.cuda.is_available()` is then true. An operation on tensors of two devices
raises, as it does on a GPU, and so does `.numpy()` of a tensor on the device. `watch` counts, with the line of the
project that made the call:

  syncs     whatever makes the host wait for the device: .item(), bool(), .cpu(), nonzero, masks as indices, and copies
            that block or whose host memory is not pinned
  launches  calls that start at least one kernel

Numbers are those of the CPU. Streams, NCCL and the rounding of a device are not simulated. Two parts of torch do not
accept such tensors: inference mode, replaced by `no_grad`, and parameters whose data is set, which are swapped instead.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

assert "torch" not in sys.modules, "the pretended device must be imported before torch"
_torch = importlib.util.find_spec("torch")
assert _torch is not None
assert _torch.submodule_search_locations
for _library in (f"{_torch.submodule_search_locations[0]}/lib/libtorch_cpu.so", os.environ["ENTROLOOP_PRETENDED"]):
    ctypes.CDLL(_library, mode=ctypes.RTLD_GLOBAL)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = tuple(f"{ROOT}/{room}/" for room in ("data", "trainer", "selection", "eval", "launcher"))

SYNCING = {
    "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "_local_scalar_dense", "equal",
    "bincount", "histc", "is_nonzero", "linalg_eigh", "_linalg_eigh", "_linalg_svd", "linalg_cholesky_ex",
}  # fmt: skip
COPIES = {"copy_", "_to_copy", "_foreach_copy_", "set_"}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
NO_KERNEL = {
    "detach", "alias", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "set_", "_local_scalar_dense", "is_pinned", "_reshape_alias",
}  # fmt: skip


class MixedDevicesError(RuntimeError):
    """An operation on tensors of two devices, which a GPU refuses."""


@dataclass
class Seen:
    """What `watch` counted: calls by kind and line of the project, and launches by operation and by line."""

    syncs: collections.Counter[str] = field(default_factory=collections.Counter)
    launches: collections.Counter[str] = field(default_factory=collections.Counter)
    lines: collections.Counter[str] = field(default_factory=collections.Counter)


_watching: list[Seen] = []
_pinned: set[int] = set()  # addresses of pinned memory


def _line() -> str:
    """The line of the project that made the present call."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(ROOMS):
            return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the project"


@contextlib.contextmanager
def watch() -> Iterator[Seen]:
    """Counts the syncs and launches of the block."""
    seen = Seen()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def _on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _is_pinned(x: Any) -> bool:
    return x.untyped_storage().data_ptr() in _pinned


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs one operation of torch's dispatcher, of which some tensors may be on the pretended device."""
    name = func._schema.name.split("::")[-1]
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, Cuda)]
    plain = [x for x in tensors if not isinstance(x, Cuda)]
    asked = _on_cuda(kwargs.get("device"))
    pins = kwargs.pop("pin_memory", False)
    if not ours and not asked:
        out = func(*args, **kwargs)
        if pins:
            _pinned.add(out.untyped_storage().data_ptr())
        return out
    _check_devices(func, name, args, ours, plain)
    leaves = name == "_to_copy" and kwargs.get("device") is not None and not asked
    if _watching:
        _count(func, name, args, kwargs, ours, plain, leaves)
    args, kwargs = tree_unflatten([x.host if isinstance(x, Cuda) else x for x in flat], spec)
    if asked:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "sqrt" and args[0].dtype is torch.float64:  # correctly rounded, as on a GPU
        out = torch.from_numpy(np.asarray(np.sqrt(args[0].detach().numpy())))
    else:
        out = func(*args, **kwargs)
    if leaves:
        return out.clone() if any(out is x.host for x in ours) else out
    if name == "copy_" and ours and not isinstance(flat[0], Cuda):
        return flat[0]
    same = {id(x.host): x for x in ours}  # operations in place return the tensor that they were given
    return tree_map(lambda x: (same[id(x)] if id(x) in same else Cuda(x)) if isinstance(x, torch.Tensor) else x, out)


def _check_devices(func: Any, name: str, args: Any, ours: list[Any], plain: list[Any]) -> None:
    problem = ""
    if name in INDEXING:
        indices = [i for i in args[1] if i is not None]
        if not isinstance(args[0], Cuda) and any(isinstance(i, Cuda) for i in indices):
            problem = "a tensor on the CPU indexed by the device"
        if len(args) > 2 and isinstance(args[0], Cuda) != isinstance(args[2], Cuda) and args[2].dim():
            problem = "values on another device"
    elif name not in COPIES and ours and any(x.dim() for x in plain):
        problem = f"shapes {[tuple(x.shape) for x in ours]} on cuda:0 and {[tuple(x.shape) for x in plain]} on the CPU"
    if problem:
        raise MixedDevicesError(f"{func} at {_line()}: {problem}")


def _sync_of(name: str, args: Any, kwargs: Any, ours: list[Any], plain: list[Any], leaves: bool) -> str:
    if name in SYNCING:
        return name
    if leaves:
        return "copy to the host"
    if name == "_to_copy" and plain and not ours:
        return "" if kwargs.get("non_blocking") and _is_pinned(plain[0]) else "copy to the device"
    if name == "copy_" and ours and plain:
        apart = len(args) > 2 and args[2] and _is_pinned(plain[0])
        return "" if apart else "copy between host and device"
    if name in INDEXING:
        indices = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            return f"{name} by a mask"
        if any(not isinstance(i, Cuda) for i in indices):
            return f"{name} by indices on the host"
    return ""


def _count(func: Any, name: str, args: Any, kwargs: Any, ours: list[Any], plain: list[Any], leaves: bool) -> None:
    sync = _sync_of(name, args, kwargs, ours, plain, leaves)
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    kernel = not view and name not in NO_KERNEL
    if not sync and not kernel:
        return
    line = _line()
    for seen in _watching:
        if sync:
            seen.syncs[f"{sync} at {line}"] += 1
        if kernel:
            seen.launches[name] += 1
            seen.lines[line] += 1


class Cuda(torch.Tensor):
    """A tensor that says `cuda:0`; `host` holds its numbers."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> Cuda:
        out: Cuda = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=torch.device("cuda", 0), requires_grad=False,
        )  # fmt: skip
        out.host = host
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Cuda({self.host!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.host.clone().__reduce_ex__(protocol)


class Mode(TorchDispatchMode):
    """Sees the calls without a tensor on the device: factories with device="cuda", and copies from the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Event:
    """A CUDA event: waiting for it is a sync."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        line = _line()
        for seen in _watching:
            seen.syncs[f"an event at {line}"] += 1


@contextlib.contextmanager
def thread() -> Iterator[None]:
    """The device in another thread than the one that imported this module."""
    torch._C._set_only_lift_cpu_tensors(True)
    with Mode():
        yield


def _pin(x: torch.Tensor, device: Any = None) -> torch.Tensor:
    out = x.clone()
    _pinned.add(out.untyped_storage().data_ptr())
    return out


def install() -> None:
    """Makes torch see the device."""
    # module.to() swaps parameters: setting their data would lose their class.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda")
    setattr(torch, "inference_mode", torch.no_grad)  # noqa: B010 - a type
    setattr(torch.Tensor, "pin_memory", _pin)  # noqa: B010 - a method
    torch.cuda.default_generators = (torch.default_generator,)
    free = 100 << 30
    replaced = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "set_device": None, "synchronize": None, "empty_cache": None, "get_device_capability": (9, 0),
        "get_device_name": "pretended", "mem_get_info": (free, free), "max_memory_allocated": 0,
        "memory_reserved": 0, "memory_allocated": 0, "is_bf16_supported": True,
        "reset_peak_memory_stats": None,
    }  # fmt: skip
    for name, value in replaced.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    setattr(torch.cuda, "Event", Event)  # noqa: B010 - a type
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    Mode().__enter__()  # for the rest of the process; the modes of other threads are their own


install()
