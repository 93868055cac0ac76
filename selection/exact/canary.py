"""Proves, before a run or command begins on a GPU, that its products are as exact as the certificates say.

device -> every format's products of known rows, checked against canonical distances

The rows are near-duplicates, whose small distance is the difference of large sums. Few long rows make libraries split
the sum; a sum in a short format is then outside the certified interval. With short rows the interval is narrow, and
rounded factors (TF32) are outside it.

`launcher/process.py` asks for the proof when it makes a World. `select` and `nearest` ask too, for the device of their
rows, for callers from Python with a World of their own or none.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.selection.exact.distance import pair_distances
from entroloop.selection.exact.formats import BF16, F32, F64, INT8, NumberFormat, shortest_format
from entroloop.selection.exact.intervals import InexactProductError, check
from entroloop.selection.exact.sketch import Frame, Sketch, product

_ROWS = 128
_WIDTHS = (64, 4096)


def _known(form: NumberFormat, width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if form is INT8:
        return torch.randint(0, 256, (_ROWS, width), generator=generator, dtype=torch.uint8).to(device)
    half = torch.randn(_ROWS // 2, width, generator=generator)
    return torch.cat([half, half + 1e-3 * torch.randn(half.shape, generator=generator)]).to(device)


def prove_gpu(world: World) -> None:
    """Calls `prove` on every rank if the World computes on GPUs. Raises its UserError on every rank."""
    if world.device.type == "cuda":
        world.agree(lambda: prove(world.device))


@functools.cache
def prove(device: torch.device) -> None:
    """Checks the products of each format in use on a device, once per process.

    Raises UserError, with the settings to change, if a product is outside its certified interval.
    """
    in_use = [shortest_format(_known(form, _WIDTHS[0], device)) for form in (INT8, BF16)]
    for form, width in itertools.product(dict.fromkeys([*in_use, F32, F64]), _WIDTHS):
        try:
            check_products(_known(form, width, device), form)
        except InexactProductError as error:
            raise UserError(
                f"{device}: {form.name} products are less exact than torch's settings promise, so selection would be "
                "wrong: unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE and NVIDIA_TF32_OVERRIDE, and keep torch.backends.cuda."
                "matmul.allow_bf16_reduced_precision_reduction at False; CUDA_VISIBLE_DEVICES= computes on the CPU"
            ) from error


def check_products(rows: Tensor, form: NumberFormat) -> None:
    """Raises InexactProductError if the product of any two of the rows, [n, D], disagrees with their distance."""
    sketch = Sketch.of(rows, Frame.of(rows), form)
    i, j = torch.ones(len(rows), len(rows), device=rows.device).nonzero().unbind(1)
    result = product(sketch, sketch.turn())[i, j]
    check(form, sketch.errors[i] + sketch.errors[j], result, pair_distances(rows, i, rows, j), sketch.frame.scale)
