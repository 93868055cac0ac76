"""Rounded rows with a bound of their rounding error, so that products of them bound distances.

    rows -> Frame (shared centre and scale) -> Sketch, Columns (left and right factors) -> product -> intervals

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

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from entroloop.data.world import World
from entroloop.selection.exact.distance import chunk_rows
from entroloop.selection.exact.formats import BF16, F64, INT8, Format

TILE_COLUMNS = 512  # right rows per product; the result with TILE_ROWS left rows stays in a core's cache
ON_GPU = 16  # times as many on a GPU, where starting a product takes longer than the product


def tile_columns(device: torch.device) -> int:
    """Right rows per product on that device."""
    return TILE_COLUMNS * (ON_GPU if device.type == "cuda" else 1)


class InexactProductError(ArithmeticError):
    """The processor multiplied less exactly than the certificates allow, so results would be wrong."""


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
        return cls(centre, 2.0 ** -int(np.ceil(np.log2(norm))) if norm > 0 else 1.0)


@dataclass(frozen=True)
class Certificate:
    """Bounds the error of products with rounded rows, in units of the frame."""

    values: Tensor  # float64 [n, 2]: the row's share of the error of a product, and at least |y - z|
    format: Format

    def __getitem__(self, index: Tensor | slice) -> Certificate:
        return Certificate(self.values[index], self.format)

    def worst(self) -> Certificate:
        """The largest values over all rows, [1]."""
        return Certificate(self.values.amax(0, keepdim=True), self.format)

    def _with(self, right: Certificate) -> tuple[Tensor, Tensor]:
        """Bounds of the accumulated error of a product and of the rounding of its rows; `right` broadcasts."""
        error, rho = (self.values + right.values).unbind(-1)
        return error, rho

    def error(self, right: Certificate) -> Tensor:
        """A bound of the accumulated error of a product; `right` broadcasts."""
        return self._with(right)[0]

    def cut(self, right: Certificate, level: Tensor, scale: float) -> Tensor:
        """The largest product that a pair no further apart than `level` can have."""
        error, rho = self._with(right)
        reach = level.clamp(min=0) * scale + rho
        rounding = 2.0**-50 if self.format in (F64, INT8) else 2.0**-22
        return self._comparable((reach.square() + error) * ((1 + 1.01 * self.format.out) * (1 + rounding)))

    def surely(self, right: Certificate, level: Tensor, scale: float) -> Tensor:
        """A product below this proves that its pair is no further apart than `level`."""
        error, rho = self._with(right)
        reach = (level * scale - rho).clamp(min=0)
        square = (reach.square() - error) * ((1 - 1.01 * self.format.out) * (1 - 2.0**-20))
        short = self._comparable(square)
        lowest = torch.iinfo(short.dtype).min if not short.is_floating_point() else -torch.inf
        return short.masked_fill(square <= 0, lowest)

    def reach(self, right: Certificate, product: Tensor, scale: float) -> Tensor:
        """The largest distance that a pair with this product can have."""
        error, rho = self._with(right)
        wide = product.view(torch.bfloat16).double() if self.format is BF16 else product.double()
        if self.format is INT8:
            wide = wide.masked_fill(product == self.format.infinite, torch.inf)
        square = wide.clamp(min=0) * (1 + 1.01 * self.format.out) + error
        return (square.sqrt() + rho) * ((1 + 2.0**-40) / scale)

    def check(self, right: Certificate, product: Tensor, distance: Tensor, scale: float) -> None:
        """Raises InexactProductError unless each product [P] agrees with the canonical distance [P] of its pair."""
        good = (product <= self.cut(right, distance, scale)) & (self.reach(right, product, scale) >= distance)
        if not bool(good.all()):
            where = int((~good).int().argmax())
            raise InexactProductError(
                f"a {self.format.name} product on {product.device} contradicts the distance {float(distance[where])!r} "
                "of its rows: matrix products are less exact here than torch's settings promise, so that no result of "
                "selection can be trusted (an environment variable or a library may have switched TF32 on)"
            )

    def _comparable(self, cut: Tensor) -> Tensor:
        """As products are compared; bounds allow for the rounding to float32."""
        if self.format is F64:
            return cut
        if self.format is INT8:  # products are integers
            return cut.floor().clamp(-1, self.format.infinite - 1).int()
        if self.format is not BF16:
            return cut.float()
        # The upper half of a float32: no bfloat16 value is between it and the cut itself.
        return cut.float().view(torch.int16)[..., 1::2]


@dataclass(frozen=True)
class Sketch:
    """Rows and their rounded copies, as left factors of products. With an `index`, row i is number index[i] of all
    tensors."""

    rows: Tensor  # canonical, [., D]
    left: Tensor  # [., K] = [-2 z, zeros, ones, |z|^2 in parts]
    certificate: Certificate
    index: Tensor | None = None

    @classmethod
    def empty(cls, n: int, like: Tensor, form: Format) -> Sketch:
        """A sketch with room for n rows like `like` [., D], not filled."""
        columns = form.columns(like.shape[1], like.device)
        left = torch.empty((n, columns), dtype=form.dtype, device=like.device)
        return cls(like, left, Certificate(torch.empty((n, 2), dtype=torch.float64, device=like.device), form))

    @classmethod
    def of(cls, rows: Tensor, frame: Frame, form: Format) -> Sketch:
        if form is INT8:
            return cls._exact(rows)
        d = rows.shape[1]
        out = cls.empty(len(rows), rows, form)
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
            z = y.to(form.dtype)
            wide = z.to(work)
            norms = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float64)
            torch.mul(z, -2, out=out.left[part, :d])  # exact
            y -= wide  # y and wide are one tensor if nothing is rounded
            lost = torch.linalg.vector_norm(y, dim=1, dtype=torch.float64)
            square[part] = norms.square()
            out.certificate.values[part, 1] = lost * (1 + slack) + slack * (norms + 2.0**-60)
        ones = out.left.shape[1] - 2 * form.parts
        out.left[:, d:ones] = 0
        out.left[:, ones : ones + form.parts] = 1
        error = 2 * (out.left.shape[1] + 4) * form.unit
        torch.add(square.new_tensor(2.0**-101), square, alpha=error, out=out.certificate.values[:, 0])
        rest = square
        for p in range(ones + form.parts, ones + 2 * form.parts):
            out.left[:, p] = rest.to(form.dtype)
            rest -= out.left[:, p].double()
        return out

    @classmethod
    def _exact(cls, rows: Tensor) -> Sketch:
        """int8: [x - 128, zeros, |x - 128|^2 in the last four bytes]."""
        out = cls.empty(len(rows), rows, INT8)
        d, step = rows.shape[1], chunk_rows(rows.device, rows.shape[1])
        out.left[:, d:] = 0
        norms = out.left.view(torch.int32)[:, -1]
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            z = rows[part].short() - 128
            out.left[part, :d] = z
            norms[part] = z.int().square_().sum(1)
        out.certificate.values[:] = 0
        return out

    def __len__(self) -> int:
        return len(self.left if self.index is None else self.index)

    def numbers(self, i: Tensor) -> Tensor:
        """The positions of the rows i in the tensors."""
        return i if self.index is None else self.index[i]

    def take(self, i: Tensor | slice) -> Sketch:
        """The rows numbered `i`, without a copy."""
        if isinstance(i, Tensor):
            return Sketch(self.rows, self.left, self.certificate, self.numbers(i))
        if self.index is None:
            return Sketch(self.rows[i], self.left[i], self.certificate[i])
        return Sketch(self.rows, self.left, self.certificate, self.index[i])

    def bounds(self, i: Tensor | slice) -> Certificate:
        """The certificate of the rows i."""
        return self.certificate[i if self.index is None else self.index[i]]

    def factor(self, i: Tensor | slice, frame: Frame) -> Tensor:
        """The left factor of the rows i. May be scratch memory, where rows of zeros follow for matrix units."""
        if isinstance(i, slice):
            if self.index is None:
                return self.left[i]
            numbers = self.index[i]
        else:
            numbers = self.numbers(i)
        n, padded = len(numbers), self.certificate.format.padded(len(numbers))
        out = frame.scratch("factor", padded, self.left.shape[1], self.left)
        torch.index_select(self.left, 0, numbers, out=out[:n])
        out[n:] = 0  # a nan left there would spread to other rows of the product
        return out

    def again(self, frame: Frame, form: Format, i: Tensor) -> Sketch:
        """The rows numbered `i` in another format."""
        return Sketch.of(self.rows.index_select(0, self.numbers(i)), frame, form)

    def turned(self, out: Tensor | None = None) -> Tensor:
        """The same rows as a right factor [>= n, K] = [z, |z|^2 in parts, ones], padded with rows at the end."""
        form = self.certificate.format
        left = self.left if self.index is None else self.left.index_select(0, self.index)
        n, d = len(left), left.shape[1] - 2 * form.parts
        right = left.new_zeros((form.padded(n), left.shape[1])) if out is None else out
        if form is INT8:
            right[:n] = left
            return right
        torch.mul(left[:, :d], -0.5, out=right[:n, :d])
        right[:n, d : d + form.parts] = left[:, d + form.parts :]
        right[:n, d + form.parts :] = left[:, d : d + form.parts]
        return right


def product(left: Tensor, right: Tensor, m: int, frame: Frame, form: Format) -> Tensor:
    """Squared distances of sketches, [n, m], in scratch memory, as `form.compared`.

    Negative results mean 0; their order means nothing.
    """
    n = len(left)
    rows = form.padded(n)
    if rows > n:
        ragged = frame.scratch("ragged", rows, left.shape[1], left)
        ragged[:n] = left
        ragged[n:] = 0  # a nan left there would spread to other rows of the product
        left = ragged
    if form is INT8:
        result = frame.scratch("product", rows, len(right), left, torch.int32)
        torch._int_mm(left[:, :-16], right[:, :-16].T, out=result)
        torch.add(right.view(torch.int32)[:, -1], result, alpha=-2, out=result)
        return result.add_(left.view(torch.int32)[:, -1:])[:n, :m]
    result = torch.mm(left, right.T, out=frame.scratch("product", rows, len(right), left))[:n, :m]
    return result.view(torch.int16) if form is BF16 else result


@dataclass(frozen=True)
class Columns:
    """Right rows: canonical `rows` and `index` as in Sketch, and `right` [>= n, K] from `Sketch.turned`."""

    rows: Tensor
    right: Tensor
    certificate: Certificate
    index: Tensor | None = None

    @classmethod
    def of(cls, left: Sketch) -> Columns:
        certificate = left.certificate if left.index is None else left.certificate[left.index]
        return cls(left.rows, left.turned(), certificate, left.index)

    def __len__(self) -> int:
        return len(self.certificate.values)

    def numbers(self, j: Tensor) -> Tensor:
        return j if self.index is None else self.index[j]

    def tiles(self) -> list[Columns]:
        """Parts of `tile_columns` rows."""
        width = tile_columns(self.right.device)
        return [self.part(start, min(start + width, len(self))) for start in range(0, len(self), width)]

    def part(self, first: int, last: int) -> Columns:
        wide = slice(first, first + self.certificate.format.padded(last - first))
        part = slice(first, last)
        right, certificate = self.right[wide], self.certificate[part]
        if self.index is None:
            return Columns(self.rows[part], right, certificate)
        return Columns(self.rows, right, certificate, self.index[part])

    def again(self, frame: Frame, form: Format) -> Columns:
        rows = self.rows if self.index is None else self.rows.index_select(0, self.index)
        return Columns.of(Sketch.of(rows, frame, form))
