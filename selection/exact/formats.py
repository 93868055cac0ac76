"""Number formats of sketches, and the choice of the shortest one that this device multiplies fast and exactly enough.

rows -> shortest_format -> NumberFormat
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class NumberFormat:
    """A number format for sketches: `unit` bounds the relative error of one accumulation step, `out` that of the
    result."""

    name: str
    dtype: torch.dtype
    parts: int  # columns that hold a squared norm to full accumulation accuracy
    unit: float
    out: float
    compared: torch.dtype  # of products when they are compared
    blocked: bool = False  # multiplied in matrix units, which are fastest with few different, round shapes

    @property
    def infinite(self) -> float:
        """The value of an absent product: larger than every product. For bfloat16 the bits of infinity."""
        if self.compared.is_floating_point:
            return torch.inf
        return 0x7F80 if self.dtype is torch.bfloat16 else torch.iinfo(self.compared).max

    def columns(self, d: int, device: torch.device) -> int:
        """Columns of a sketch of rows with `d` features. The last 4 columns of an int8 sketch hold its squared norm.

        On a GPU, bfloat16 gets a multiple of 16, without which its matrix units are not used.
        """
        if self.dtype is torch.int8:
            return -(-d // 16) * 16 + 16
        exact = d + 2 * self.parts
        return -(-exact // 16) * 16 if self.blocked and device.type == "cuda" else exact

    def padded(self, n: int) -> int:
        """Rounds n up for matrix units, because the library spends milliseconds on preparing each new shape."""
        return -(-n // 128) * 128 if self.blocked else n


# Matrix units may truncate instead of rounding, so bfloat16 has one bit of margin.
# bfloat16 products are compared as integers of the same order, which is several times faster.
BF16 = NumberFormat("bfloat16", torch.bfloat16, 3, 2.0**-23, 2.0**-8, torch.int16, True)
F32 = NumberFormat("float32", torch.float32, 2, 2.0**-24, 2.0**-24, torch.float32)
F64 = NumberFormat("float64", torch.float64, 1, 2.0**-53, 2.0**-53, torch.float64)
INT8 = NumberFormat("int8", torch.int8, 0, 0.0, 0.0, torch.int32, True)  # exact, for rows of uint8
LONGER = {"bfloat16": F32, "float32": F64}
_WIDEST_INT8 = 1 << 15  # up to this number of features every squared distance fits int32


_FAST = 0.75  # share of float32's time below which bfloat16 is worth its wider intervals
_PROBE = (1024, 512, 384)  # rows, columns and features of the products that are timed


def shortest_format(*rows: Tensor) -> NumberFormat:
    """int8 for rows of uint8 where its products are exact, bfloat16 for others where it is fast, else float32.

    The first call in a process on a CPU with such units multiplies a few small matrices, which takes 30 to 100 ms.
    """
    device = rows[0].device
    whole = all(x.dtype == torch.uint8 and x.shape[1] <= _WIDEST_INT8 for x in rows)
    if whole and _int8_is_exact(device):
        return INT8
    return BF16 if _bfloat16_is_fast(device) else F32


@cache
def _bfloat16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # The flags name what the processor has. ONEDNN_MAX_CPU_ISA can forbid its use, which only the time shows.
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return False
    n, m, k = _PROBE
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(4):  # in alternation, so that other load affects both; the first products also prepare the library
        for dtype, taken in times.items():
            left, right = torch.ones(n, k, dtype=dtype), torch.ones(m, k, dtype=dtype)
            start = time.process_time()
            left @ right.T
            taken.append(time.process_time() - start)
    return min(times[torch.bfloat16]) < _FAST * min(times[torch.float32])


@cache
def _int8_is_exact(device: torch.device) -> bool:
    """Whether int8 products are exact here. Without VNNI or AMX the processor adds pairs in 16 bits, which saturate."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_vnni_supported()):
        return False
    k = _PROBE[-1]
    extremes = torch.tensor([-128, 127], dtype=torch.int8)
    place = torch.arange(64)[:, None] * torch.arange(k)
    rows = torch.cat([extremes[[0]].expand(8, k), extremes[[1]].expand(8, k), extremes[(place // 7) % 2]])
    return torch.equal(torch._int_mm(rows, rows.T).double(), rows.double() @ rows.double().T)
