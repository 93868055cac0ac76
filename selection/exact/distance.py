"""The canonical distance of two rows, and the checks on features.

    array, memory map or tensor  ->  as_rows, first_bad_row  ->  tensor [N, D]  ->  pair_distances  ->  float64

Every distance that `selection` returns or compares exactly is computed here: coordinates are widened to float64,
subtracted, squared and summed in a fixed order. The value depends on the two points alone, not on blocks, ranks,
threads or device, because each step is one IEEE operation per element. Squares underflow, so differences below about
1e-154 lose digits and differences below 1e-162 count as 0. Matrix products elsewhere only bound distances. A bound
decides a pair if its error cannot change the decision; every other pair needs the canonical distance.

Shapes: N points, D features, P pairs.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entroloop.data import memory
from entroloop.data.errors import UserError

LARGEST = 1e150  # of a value: with 4e7 features the squared distance (2e150)^2 D is still below float64's 1.8e308
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.uint8)
_CHECK_ELEMENTS = 1 << 24  # elements per step of the check of values: 64 MiB of float32
_CHUNK_ELEMENTS = 1 << 18  # elements computed at a time: 2 MiB of float64, which stays in a processor's cache
_GPU_CHUNK_ELEMENTS = 1 << 28  # most on a GPU, where every chunk costs launches: 2 GiB of float64


def chunk_rows(device: torch.device, width: int, times: int = 1) -> int:
    """Rows of that width which are worked on at a time. On a CPU `times` allows more than the usual chunk."""
    elements = times * _CHUNK_ELEMENTS
    if device.type == "cuda":
        elements = min(_GPU_CHUNK_ELEMENTS, memory.total_bytes(device) // 256)  # about 16 bytes each while at work
    return max(16, elements // width)


def as_rows(features: Any, name: str = "features", device: torch.device | None = None) -> Tensor:
    """A tensor [N, D] over the same memory where possible; memory maps stay memory maps.

    features  array, memory map or tensor [N, D] of float32, float64, float16 or uint8
    Raises UserError for another number of dimensions or dtype, or no columns. `first_bad_row` checks the values.
    """
    if not isinstance(features, Tensor):
        array = np.asarray(features)
        if array.ndim != 2:
            raise UserError(f"{name}: must have two dimensions [N, D], has shape {list(array.shape)}")
        if array.dtype not in (np.float32, np.float64, np.float16, np.uint8):
            raise UserError(f"{name}: dtype must be float32, float64, float16 or uint8, is {array.dtype}")
        if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
            array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only maps; nothing here writes to them
            features = torch.from_numpy(array)
    if features.ndim != 2:
        raise UserError(f"{name}: must have two dimensions [N, D], has shape {list(features.shape)}")
    if features.dtype not in _DTYPES:
        raise UserError(f"{name}: dtype must be float32, float64, float16 or uint8, is {features.dtype}")
    if features.shape[1] == 0:
        raise UserError(f"{name}: has no columns, shape {list(features.shape)}")
    rows: Tensor = features.detach()
    return rows if device is None else rows.to(device)


def first_bad_row(x: Tensor, largest: float = LARGEST) -> tuple[int, float] | None:
    """The first row with a value that is NaN or beyond ±largest, and that value; None if there is no such row."""
    if not x.dtype.is_floating_point:
        return None
    largest = min(largest, torch.finfo(x.dtype).max)
    step = max(1, _CHECK_ELEMENTS // x.shape[1])
    for start in range(0, len(x), step):
        part = x[start : start + step]
        low, high = torch.aminmax(part)  # NaN if any value is NaN
        if not (-largest <= float(low) and float(high) <= largest):
            bad = ~(part.abs() <= largest)
            row = int(bad.any(1).int().argmax())
            return start + row, float(part[row][bad[row]][0])
    return None


def bad_row_error(name: str, row: int, value: float, largest: float = LARGEST) -> UserError:
    """The error of a row with a value that `first_bad_row` finds."""
    if not math.isfinite(value):
        return UserError(f"{name}: row {row} holds NaN or infinity; every feature must be finite")
    within = f"within ±{largest:.0e}, because products of larger ones overflow"
    return UserError(f"{name}: row {row} holds {value:.2g}; every feature must be {within}")


def fold_sum(x: Tensor) -> Tensor:
    """Sums each row by folding halves onto each other, in place. float64 [P, D] -> [P].

    The order of additions depends on D alone and every addition is elementwise, so all devices give the same bits.
    """
    width = x.shape[1]
    while width > 1:
        half = 1 << ((width - 1).bit_length() - 1)
        x[:, : width - half].add_(x[:, half:width])  # `+=` would copy the sum onto itself
        width = half
    return x[:, 0]


def root(x: Tensor) -> Tensor:
    """The correctly rounded square root of float64; torch's own on a CPU is off by one unit for some values."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, exact on every device, which exp2 is not. int [...], clamped to -1022 … 1023 -> float64 [...]."""
    return ((exponent.long().clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


def pair_distances(a: Tensor, i: Tensor, b: Tensor, j: Tensor) -> Tensor:
    """The canonical distance of row i of `a` to row j of `b`. int64 [P], int64 [P] -> float64 [P]."""
    out = torch.empty(len(i), dtype=torch.float64, device=a.device)
    step = min(chunk_rows(a.device, a.shape[1]), max(1, len(i)))
    left, right = a.new_empty((step, a.shape[1])), b.new_empty((step, b.shape[1]))
    wide = out.new_empty((step, a.shape[1]))
    for start in range(0, len(i), step):
        n = min(step, len(i) - start)
        torch.index_select(a, 0, i[start : start + n], out=left[:n])
        torch.index_select(b, 0, j[start : start + n], out=right[:n])
        difference = wide[:n].copy_(left[:n])
        difference -= right[:n]
        difference *= difference
        sums = fold_sum(difference)
        if n == len(i):
            return root(sums)
        out[start : start + n] = sums
    return root(out)


def distances_to(x: Tensor, point: Tensor) -> Tensor:
    """The canonical distance of every row to one point. [N, D], [D] -> float64 [N]."""
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    step = chunk_rows(x.device, x.shape[1])
    for start in range(0, len(x), step):
        difference = x[start : start + step].double()
        if x.dtype == torch.float64:
            difference = difference.clone()
        difference -= point
        difference *= difference
        out[start : start + step] = fold_sum(difference)
    return root(out)
