"""Which pairs can matter: matrix products in low precision, with certified error, tell which distances must be computed.

    rows -> Frame (shared centre and scale) -> Sketch (rounded rows, with what rounding lost) -> contenders -> pairs

A sketch holds z_i, the centred and scaled row rounded to a short format, and rho_i >= |y_i - z_i| for the unrounded y_i.
By the triangle inequality | |y_i - y_j| - |z_i - z_j| | <= rho_i + rho_j. One matrix product T of the augmented sketches

    [-2 z_i, 1, |z_i|^2] . [z_j, |z_j|^2, 1]  =  |z_i - z_j|^2

carries an error of at most K u' (|z_i|^2 + |z_j|^2) * 2 for K columns and accumulation error u' a step (Higham, Accuracy and
Stability of Numerical Algorithms, ch. 3), times one rounding of the result. A pair whose interval lies above the level is
certainly no nearer than the level; all others are returned, and get the canonical distance. Where a format cannot
separate the pairs, the next longer one is tried: bfloat16 -> float32 -> float64. So the format changes the time, never
the result.

Shapes: n left rows, m right rows, D features, K augmented columns, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from entroloop.data.world import World

TILE_COLUMNS = 512  # right rows of one product; with TILE_ROWS its result stays in a core's cache
TILE_ROWS = 2048
_CROWDED = 4  # contenders a row from which a longer format is cheaper than computing the distances
_PAIRS = 1 << 20  # pairs handed out at once


@dataclass(frozen=True)
class Format:
    """A number format for sketches: `unit` bounds the relative error of one accumulation step, `out` that of the result."""

    name: str
    dtype: torch.dtype
    parts: int  # columns that hold a squared norm to full accumulation accuracy
    unit: float
    out: float


# Matrix units may truncate rather than round and align several terms at once: two bits of margin for bfloat16.
BF16 = Format("bfloat16", torch.bfloat16, 3, 2.0**-22, 2.0**-8)
F32 = Format("float32", torch.float32, 2, 2.0**-24, 2.0**-23)
F64 = Format("float64", torch.float64, 1, 2.0**-53, 2.0**-52)
_LONGER = {"bfloat16": F32, "float32": F64}


def shortest_format(device: torch.device) -> Format:
    """bfloat16 where the processor multiplies it in matrix units, else float32."""
    if device.type == "cuda":
        return BF16 if torch.cuda.get_device_capability(device)[0] >= 8 else F32
    return BF16 if torch.cpu._is_amx_tile_supported() else F32


@dataclass(frozen=True)
class Frame:
    """y = (x - centre) * scale, with a power of two as scale, so that the rows have norms of about 1 or less.

    Also lends scratch memory: fresh memory for each product would cost more than the product.
    """

    centre: Tensor  # [D] float64
    scale: float
    _scratch: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def scratch(self, use: str, rows: int, columns: int, like: Tensor) -> Tensor:
        """[rows, columns] of unspecified content, of the dtype and device of `like`; valid until asked for again."""
        key, size = f"{use} {like.dtype}", rows * columns
        memory = self._scratch.get(key)
        if memory is None or len(memory) < size:
            memory = self._scratch[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return memory[:size].view(rows, columns)

    @classmethod
    def of(cls, rows: Tensor, world: World | None = None) -> Frame:
        """From at most 4,096 rows a rank; only tightness depends on it. Two exchanges where there are several ranks."""
        world = World() if world is None else world
        sample = rows[:: max(1, len(rows) // 4096)].double()
        sums = world.all_reduce(torch.cat([sample.sum(0), sample.new_tensor([len(sample)])]))
        centre = sums[:-1] / sums[-1].clamp(min=1)
        if rows.dtype == torch.uint8:
            centre = torch.full_like(centre, 128.0)  # integers up to 128 are exact in bfloat16
        largest = (sample - centre).square().sum(1).max()[None] if len(sample) else sums.new_zeros(1)
        norm = float(world.all_reduce(largest, "max")) ** 0.5
        return cls(centre, 2.0 ** -int(np.ceil(np.log2(norm))) if norm > 0 else 1.0)


@dataclass(frozen=True)
class Sketch:
    """Rounded rows: `left` [n, K] = [-2 z, ones, |z|^2 in parts]; `square` [n] |z|^2; `rho` [n] what rounding lost."""

    left: Tensor
    square: Tensor  # float64
    rho: Tensor  # float64
    format: Format

    @classmethod
    def of(cls, rows: Tensor, frame: Frame, form: Format) -> Sketch:
        n, d = rows.shape
        parts = form.parts
        left = torch.empty((n, d + 2 * parts), dtype=form.dtype, device=rows.device)
        square = torch.empty(n, dtype=torch.float64, device=rows.device)
        rho = torch.empty_like(square)
        # float32 is long enough for what bfloat16 loses; `slack` covers the rounding of y and of the norms in `work`
        work, slack = (torch.float64, (d + 8) * 2.0**-51)
        if form is BF16 and rows.dtype != torch.float64:
            work, slack = torch.float32, (d + 8) * 2.0**-23
        centre = frame.centre.to(rows.device, work)  # rounded alike for all rows, so that it cancels
        step = max(16, (1 << 17) // d)
        for start in range(0, n, step):
            part = slice(start, start + step)
            y = (rows[part].to(work) - centre) * frame.scale
            z = y.to(form.dtype)
            left[part, :d] = z
            left[part, :d] *= -2  # exact
            wide = z.to(work)
            norms = torch.linalg.vector_norm(wide, dim=1).double()
            square[part] = norms.square()
            y -= wide  # the two are one tensor where nothing is rounded
            rho[part] = torch.linalg.vector_norm(y, dim=1).double() * (1 + slack) + slack * (norms + 2.0**-60)
        rest = square.clone()
        left[:, d : d + parts] = 1
        for p in range(d + parts, d + 2 * parts):
            left[:, p] = rest.to(form.dtype)
            rest -= left[:, p].double()
        return cls(left, square, rho, form)

    def __len__(self) -> int:
        return len(self.square)

    def __getitem__(self, index: Tensor | slice) -> Sketch:
        return Sketch(self.left[index], self.square[index], self.rho[index], self.format)

    def right(self) -> Tensor:
        """[n, K] = [z, |z|^2 in parts, ones]."""
        parts = self.format.parts
        d = self.left.shape[1] - 2 * parts
        return torch.cat([self.left[:, :d] * -0.5, self.left[:, d + parts :], self.left[:, d : d + parts]], 1)


@dataclass(frozen=True)
class Side:
    """Rows with their sketch. `rows` are canonical, [n, D]; where `index` is given, row i is rows[index[i]]."""

    rows: Tensor
    sketch: Sketch
    index: Tensor | None = None

    def take(self, i: Tensor) -> Tensor:
        return i if self.index is None else self.index[i]

    def again(self, frame: Frame, form: Format, i: Tensor | None = None) -> Side:
        """The same rows (or those numbered `i`) in another format."""
        index = self.index if i is None else self.take(i)
        rows = self.rows if index is None else self.rows.index_select(0, index)
        return Side(rows, Sketch.of(rows, frame, form))


def _error(left: Sketch, right: Sketch) -> Tensor:
    """Bounds the accumulated error of the product for each left row against any right row. float64 [n]."""
    steps = left.left.shape[1] + 4
    return 2 * steps * left.format.unit * (left.square + right.square.max()) + 2.0**-100


def _cut(left: Sketch, right: Sketch, level: Tensor, scale: float) -> Tensor:
    """The largest product result that a pair no further apart than `level` can have. float32 or float64 [n]."""
    reach = level.clamp(min=0) * scale + left.rho + right.rho.max()
    cut = (reach.square() + _error(left, right)) * (1 + 2 * left.format.out)
    return cut if left.format is F64 else (cut * (1 + 2.0**-22)).float()


def _reach(left: Sketch, right: Sketch, product: Tensor, scale: float) -> Tensor:
    """The largest distance that a pair with this product result can have. float64 [n]."""
    square = product.double().clamp(min=0) * (1 + 2 * left.format.out) + _error(left, right)
    return (square.sqrt() + left.rho + right.rho.max()) * ((1 + 2.0**-40) / scale)


def _ordered(x: Tensor) -> Tensor:
    """bfloat16 as integers of the same order (all negative ones below 0), since those compare several times faster."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _ordered_cut(cut: Tensor, form: Format) -> Tensor:
    """`cut` for comparison with `_ordered` results: truncated, since those have no finer values."""
    return (cut.view(torch.int32) >> 16).to(torch.int16) if form is BF16 else cut


def nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the true entries; numpy's search is ten times faster than torch's on a CPU."""
    if mask.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
        return flat // mask.shape[1], flat % mask.shape[1]
    return tuple(mask.nonzero().unbind(1))  # type: ignore[return-value]


def contenders(
    left: Side, right: Side, level: Tensor, frame: Frame, k: int | None = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (i, j) int64 [P] such that every pair that can matter is among them.

    level  [n] float64: pairs (i, j) further apart than level[i] do not matter
    k      only the k nearest right rows of each left row matter, ties included; None: all within the level
    """
    for start in range(0, len(right.sketch), TILE_COLUMNS):
        part = slice(start, start + TILE_COLUMNS)
        tile = Side(right.rows, right.sketch[part], None if right.index is None else right.index[part])
        columns = tile.sketch.right().T
        for top in range(0, len(left.sketch), TILE_ROWS):
            yield from _tile(left, tile, columns, top, start, level[top : top + TILE_ROWS], frame, k)


def _open(mask: Tensor, result: Tensor, left: Sketch, right: Sketch, level: Tensor, scale: float, k: int | None) -> int:
    """How many contenders a longer format might rule out."""
    found = int(mask.sum())
    if k is not None or found <= _CROWDED * len(mask):
        return found - (k or 0) * len(mask)
    reach = (level * scale - left.rho - right.rho.max()).clamp(min=0)
    sure = ((reach.square() - _error(left, right)).clamp(min=0) * (1 - 2 * left.format.out)).float()
    return found - int((result <= _ordered_cut(sure, left.format)[:, None]).sum())


def _tile(
    left: Side, tile: Side, columns: Tensor, top: int, start: int, level: Tensor, frame: Frame, k: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    sketch = left.sketch[slice(top, top + len(level))]
    form = sketch.format
    product = frame.scratch("product", len(level), columns.shape[1], columns)
    result = _ordered(torch.mm(sketch.left, columns, out=product))
    cut = _ordered_cut(_cut(sketch, tile.sketch, level, frame.scale), form)
    lowest = result.amin(1)
    alive = (lowest <= cut).nonzero()[:, 0]
    if len(alive) == 0:
        return
    result, cut, sketch = result.index_select(0, alive), cut[alive], sketch[alive]
    if k is not None and k <= len(tile.sketch):
        kth = lowest[alive] if k == 1 else result.kthvalue(k, dim=1).values
        kth = kth.view(torch.bfloat16) if form is BF16 else kth
        within = torch.minimum(level[alive], _reach(sketch, tile.sketch, kth, frame.scale))
        cut = _ordered_cut(_cut(sketch, tile.sketch, within, frame.scale), form)
    mask = result <= cut[:, None]
    if form.name in _LONGER and _open(mask, result, sketch, tile.sketch, level[alive], frame.scale, k) > _CROWDED * len(
        alive
    ):
        base = tile if tile.index is not None else Side(tile.rows[start : start + len(tile.sketch)], tile.sketch)
        longer = _LONGER[form.name]
        sub = left.again(frame, longer, alive + top)
        for i, j in contenders(sub, base.again(frame, longer), level[alive], frame, k):
            yield alive[i] + top, j + start
        return
    step = max(1, _PAIRS // mask.shape[1])
    for first in range(0, len(alive), step):
        i, j = nonzero(mask[first : first + step])
        yield alive[i + first] + top, j + start
