"""What a product of two sketches proves about the distance of their rows.

    NumberFormat + errors + level             -> cut, surely: the products that decide if a pair is within the level
                 + errors + product           -> reach: the largest distance of its pair
                 + errors + product, distance -> check

`errors` [..., 2] is the sum of the errors of a pair's two sketches: a bound of the accumulated error of the product,
and of the distance that rounding the rows can add or remove. They are in units of the frame; distances are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from entroloop.selection.exact.formats import BF16, F64, INT8, NumberFormat


class InexactProductError(ArithmeticError):
    """The processor multiplied less exactly than the intervals allow, so results would be wrong."""


def cut(form: NumberFormat, errors: Tensor, level: Tensor | float, scale: float) -> Tensor:
    """The largest product that a pair no further apart than `level` can have."""
    error, rho = errors.unbind(-1)
    far = torch.add(rho, level, alpha=scale)
    rounding = 2.0**-50 if form in (F64, INT8) else 2.0**-22
    return _comparable(form, torch.addcmul(error, far, far).mul_((1 + 1.01 * form.out) * (1 + rounding)))


def surely(form: NumberFormat, errors: Tensor, level: Tensor | float, scale: float) -> Tensor:
    """A product below this proves that its pair is no further apart than `level`."""
    error, rho = errors.unbind(-1)
    near = (level * scale - rho).clamp_(min=0)
    square = torch.addcmul(error, near, near, value=-1).mul_(-(1 - 1.01 * form.out) * (1 - 2.0**-20))
    short = _comparable(form, square)
    lowest = torch.iinfo(short.dtype).min if not short.is_floating_point() else -torch.inf
    return short.masked_fill(square <= 0, lowest)


def reach(form: NumberFormat, errors: Tensor, product: Tensor, scale: float) -> Tensor:
    """The largest distance that a pair with this product can have."""
    error, rho = errors.unbind(-1)
    wide = product.view(torch.bfloat16).double() if form is BF16 else product.double()
    if form is INT8:
        wide = wide.masked_fill(product == form.infinite, torch.inf)
    square = torch.add(error, wide.clamp(min=0), alpha=1 + 1.01 * form.out)
    return square.sqrt_().add_(rho).mul_((1 + 2.0**-40) / scale)


def check(form: NumberFormat, errors: Tensor, product: Tensor, distance: Tensor, scale: float) -> None:
    """Raises InexactProductError unless each product [P] agrees with the canonical distance [P] of its pair."""
    good = (product <= cut(form, errors, distance, scale)) & (reach(form, errors, product, scale) >= distance)
    if not bool(good.all()):
        where = int((~good).int().argmax())
        raise InexactProductError(
            f"a {form.name} product on {product.device} contradicts the distance {float(distance[where])!r} "
            "of its rows: matrix products are less exact here than torch's settings promise, so that no result of "
            "selection can be trusted (an environment variable or a library may have switched TF32 on)"
        )


def _comparable(form: NumberFormat, bound: Tensor) -> Tensor:
    """As products are compared; bounds allow for the rounding to float32."""
    if form is F64:
        return bound
    if form is INT8:  # products are integers
        return bound.floor().clamp(-1, form.infinite - 1).int()
    if form is not BF16:
        return bound.float()
    # The upper half of a float32: no bfloat16 value is between it and the bound itself.
    return bound.float().view(torch.int16)[..., 1::2]
