"""Rounded rows with a bound of their rounding error, so that products of them bound distances.

    rows -> Frame (shared centre and scale) -> Sketch (left factors) -> turn (right factors) -> product -> intervals

A sketch holds z_i, the centred and scaled row rounded to a short format, and rho_i >= |y_i - z_i| for the unrounded
y_i. By the triangle inequality | |y_i - y_j| - |z_i - z_j| | <= rho_i + rho_j. One matrix product T of the augmented
sketches

    [-2 z_i, 1, |z_i|^2] . [z_j, |z_j|^2, 1]  =  |z_i - z_j|^2

has an error of at most K u' (|z_i|^2 + |z_j|^2) * 2 for K columns and accumulation error u' per step (Higham, Accuracy
and Stability of Numerical Algorithms, ch. 3), times one rounding of the result. Rows of uint8 need no rounding:
z = x - 128 is an int8, and |z_i|^2 + |z_j|^2 - 2 z_i . z_j in int32 is exactly the squared distance.

Shapes: n left rows, m right rows, D features, K augmented columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from entroloop.data.world import World
from entroloop.selection.exact.distance import chunk_rows
from entroloop.selection.exact.formats import BF16, INT8, NumberFormat

TILE_COLUMNS = 512  # right rows per product; the result with TILE_ROWS left rows stays in a core's cache
ON_GPU = 16  # times as many on a GPU, where starting a product takes longer than the product
_FINEST = 2.0**470  # a larger scale would show what the squares in canonical distances lose to underflow
_FARTHEST = 2.0**48  # coordinates are rounded to at most this, so that no format overflows in a product


def tile_columns(device: torch.device) -> int:
    """Right rows per product on that device."""
    return TILE_COLUMNS * (ON_GPU if device.type == "cuda" else 1)


@dataclass(frozen=True)
class Frame:
    """y = (x - centre) * scale. The scale is a power of two for which the rows have norms of about 1 or less. Rows of
    uint8 are only centred, on 128, so that they stay integers.

    A frame also lends scratch memory, because fresh memory for each product would cost more than the product.
    """

    centre: Tensor  # [D] float64
    scale: float
    _scratch: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def scratch(self, use: str, rows: int, columns: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Memory [rows, columns] of unspecified content, on the device of `like` and with its dtype, or `dtype`. Valid
        until the next call for the same use and dtype."""
        dtype = dtype or like.dtype
        key, size = f"{use} {dtype}", rows * columns
        memory = self._scratch.get(key)
        if memory is None or len(memory) < size:
            memory = self._scratch[key] = torch.empty(size, dtype=dtype, device=like.device)
        return memory[:size].view(rows, columns)

    @classmethod
    def of(cls, rows: Tensor, world: World | None = None) -> Frame:
        """Fits a frame to about 1,024 rows per rank; only tightness depends on it. Several ranks need two exchanges."""
        if rows.dtype == torch.uint8:  # integers up to 128 are exact in int8 and bfloat16
            return cls(torch.full((rows.shape[1],), 128.0, dtype=torch.float64, device=rows.device), 1.0)
        world = World() if world is None else world
        sample = rows[:: max(1, len(rows) // 1024)].double()
        sums = world.all_reduce(torch.cat([sample.sum(0), sample.new_tensor([len(sample)])]))
        centre = sums[:-1] / sums[-1].clamp(min=1)
        largest = (sample - centre).square().sum(1).max()[None] if len(sample) else sums.new_zeros(1)
        norm = float(world.all_reduce(largest, "max")) ** 0.5
        return cls(centre, min(2.0 ** -int(np.ceil(np.log2(norm))), _FINEST) if norm > 0 else 1.0)


@dataclass(frozen=True)
class Sketch:
    """Rows and their rounded copies, as factors of products.

    rows    canonical, [., D]
    factor  [., K]: [-2 z, zeros, ones, |z|^2 in parts] as left factor; in a `turned` sketch, which is a right factor,
            [z, zeros, |z|^2 in parts, ones]
    errors  float64 [n, 2] of each row: its share of the error of a product, and at least |y - z|
    index   int64 [n]: row i is number index[i] of `rows`, and of `factor` unless turned. None: it is number i
    """

    rows: Tensor
    factor: Tensor
    errors: Tensor
    form: NumberFormat
    frame: Frame
    index: Tensor | None = None
    turned: bool = False

    @classmethod
    def empty(cls, n: int, like: Tensor, frame: Frame, form: NumberFormat) -> Sketch:
        """A sketch with room for n rows like `like` [., D], not filled."""
        factor = torch.empty((n, form.columns(like.shape[1], like.device)), dtype=form.dtype, device=like.device)
        return cls(like, factor, torch.empty((n, 2), dtype=torch.float64, device=like.device), form, frame)

    @classmethod
    def of(cls, rows: Tensor, frame: Frame, form: NumberFormat) -> Sketch:
        if form is INT8:
            return cls._exact(rows, frame)
        d = rows.shape[1]
        out = cls.empty(len(rows), rows, frame, form)
        factor, errors = out.factor, out.errors
        # float32 suffices to measure the loss of bfloat16; `slack` covers the rounding of y in `work` and of the norms
        work, slack = torch.float64, (d + 8) * 2.0**-51
        if form is BF16 and rows.dtype != torch.float64:
            work, slack = torch.float32, 2.0**-22
        centre = frame.centre.to(rows.device, work)  # rounded alike for all rows, so its rounding cancels
        step = chunk_rows(rows.device, d)
        square = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            y = (rows[part].to(work) - centre) * frame.scale
            z = y.clamp(-_FARTHEST, _FARTHEST).to(form.dtype)
            wide = z.to(work)
            norms = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float64)
            torch.mul(z, -2, out=factor[part, :d])  # exact
            y -= wide
            lost = torch.linalg.vector_norm(y, dim=1, dtype=torch.float64)
            torch.mul(norms, norms, out=square[part])
            torch.add(lost.mul_(1 + slack), norms.add_(2.0**-60), alpha=slack, out=errors[part, 1])
        ones = factor.shape[1] - 2 * form.parts
        if ones > d:
            factor[:, d:ones] = 0
        factor[:, ones : ones + form.parts] = 1
        steps = 2 * (factor.shape[1] + 4) * form.unit
        torch.mul(square, steps, out=errors[:, 0]).add_(2.0**-101)
        rest = square
        for p in range(ones + form.parts, ones + 2 * form.parts):
            factor[:, p] = rest
            rest -= factor[:, p]
        return out

    @classmethod
    def _exact(cls, rows: Tensor, frame: Frame) -> Sketch:
        """int8: [x - 128, zeros, |x - 128|^2 in the last four bytes]."""
        out = cls.empty(len(rows), rows, frame, INT8)
        d, step = rows.shape[1], chunk_rows(rows.device, rows.shape[1])
        out.factor[:, d:] = 0
        norms = out.factor.view(torch.int32)[:, -1]
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            z = rows[part].short() - 128
            out.factor[part, :d] = z
            norms[part] = z.int().square_().sum(1)
        out.errors.zero_()
        return out

    def __len__(self) -> int:
        return self.errors.shape[0]  # len() of a tensor takes several times as long

    def numbers(self, i: Tensor) -> Tensor:
        """The positions of the rows i in `rows`."""
        return i if self.index is None else self.index[i]

    def _numbers(self, i: Tensor | slice | None) -> Tensor | slice | None:
        """As an index of `rows`, of which None means all."""
        if i is None or self.index is None:
            return self.index if i is None else i
        return self.index[i]

    def take(self, i: Tensor | slice) -> Sketch:
        """The rows numbered `i`, without a copy. A turned sketch has slices only."""
        if isinstance(i, Tensor):
            return replace(self, errors=self.errors[i], index=self.numbers(i))
        rows, factor, index = self.rows, self.factor, self.index
        if self.turned:
            factor = factor[i.start : i.start + self.form.padded(i.stop - i.start)]
        elif index is None:
            factor = factor[i]
        if index is None:
            rows = rows[i]
        else:
            index = index[i]
        return replace(self, rows=rows, factor=factor, errors=self.errors[i], index=index)

    def tiles(self) -> list[Sketch]:
        """Parts of `tile_columns` rows, of a turned sketch."""
        width = tile_columns(self.rows.device)
        return [self.take(slice(start, min(start + width, len(self)))) for start in range(0, len(self), width)]

    def again(self, form: NumberFormat, i: Tensor | slice | None = None) -> Sketch:
        """The rows numbered `i`, or all rows, as left factors in another format."""
        numbers = self._numbers(i)
        return Sketch.of(self.rows if numbers is None else self.rows[numbers], self.frame, form)

    def turn(self) -> Sketch:
        """The same rows as right factors, padded with rows at the end."""
        n, padded = len(self), self.form.padded(len(self))
        factor = self.factor.new_empty((padded, self.factor.shape[1]))
        if padded > n:
            factor[n:] = 0
        self.turn_into(factor)
        return replace(self, factor=factor, turned=True)

    def turn_into(self, right: Tensor) -> None:
        """Writes the right factors into the first rows of `right` [>= n, K]."""
        left = self.factor if self.index is None else self.factor.index_select(0, self.index)
        self._swapped(left, right[: len(left)], -0.5)

    def turn_back(self) -> Sketch:
        """The rows of a turned sketch as left factors, in the same order."""
        rows = self.rows if self.index is None else self.rows.index_select(0, self.index)
        factor = torch.empty_like(self.factor[: len(self)])
        self._swapped(self.factor[: len(self)], factor, -2.0)
        return replace(self, rows=rows, factor=factor, index=None, turned=False)

    def _swapped(self, source: Tensor, out: Tensor, times: float) -> None:
        if self.form is INT8:
            out[:] = source
            return
        parts = self.form.parts
        d = source.shape[1] - 2 * parts
        torch.mul(source[:, :d], times, out=out[:, :d])
        out[:, d : d + parts] = source[:, d + parts :]
        out[:, d + parts :] = source[:, d : d + parts]

    def padded(self, i: Tensor | slice | None) -> tuple[Tensor, int]:
        """The left factors of the rows i (None: all), and their number. Matrix units get more rows, of zeros. The
        result may be scratch memory."""
        numbers = self._numbers(i)
        if isinstance(numbers, Tensor):
            n = len(numbers)
        else:
            factor = self.factor if numbers is None else self.factor[numbers]
            n = len(factor)
            if self.form.padded(n) == n:
                return factor, n
        out = self.frame.scratch("factor", self.form.padded(n), self.factor.shape[1], self.factor)
        if isinstance(numbers, Tensor):
            torch.index_select(self.factor, 0, numbers, out=out[:n])
        else:
            out[:n] = factor
        if len(out) > n:
            out[n:] = 0  # a nan left there would spread to other rows of the product
        return out, n


def product(left: Sketch, right: Sketch, i: Tensor | slice | None = None) -> Tensor:
    """Squared distances of the left rows i (None: all) to all right rows, [n, m], as `form.compared`.

    right  turned
    ->     in scratch memory. Negative results mean 0; their order means nothing
    """
    form, (factor, n), m = right.form, left.padded(i), len(right)
    dtype = torch.int32 if form is INT8 else form.dtype
    result = right.frame.scratch("product", len(factor), len(right.factor), factor, dtype)
    if form is INT8:
        torch._int_mm(factor[:, :-16], right.factor[:, :-16].T, out=result)
        torch.add(right.factor.view(torch.int32)[:, -1], result, alpha=-2, out=result)
        return result.add_(factor.view(torch.int32)[:, -1:])[:n, :m]
    torch.mm(factor, right.factor.T, out=result)
    return result[:n, :m].view(torch.int16) if form is BF16 else result[:n, :m]
