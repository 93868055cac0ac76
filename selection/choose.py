"""`select`, the one entry to all strategies, and the checks of its arguments.

    features (this rank's rows) + size + strategy + options  ->  Selection(ids, radii), the same on every rank

Shapes: n_r rows of this rank, N rows of all ranks, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.data.memory import enough_memory
from entroloop.data.precision import full_precision
from entroloop.data.world import World
from entroloop.selection.catalogue import DISTANCES, STRATEGIES
from entroloop.selection.exact.rows import RankRows
from entroloop.selection.exact.spaces import Metric, check_mapped, check_rows, fit_metric
from entroloop.selection.neighbours import check_device, checked, nearest
from entroloop.selection.options import OF_A_RUN, check_fit, check_options
from entroloop.selection.rules.problem import Problem, Selection, order_radii, quotas

__all__ = ["Problem", "Selection", "select"]

Strategy = Callable[..., Selection]


@full_precision()
@enough_memory("spread the rows over more processes")
def select(
    features: Any,
    size: int,
    strategy: str = "greedy",
    *,
    seed: int = 0,
    world: World | None = None,
    metric: str = "euclidean",
    labels: Any = None,
    generations: Any = None,
    reference: Any = None,
    reference_labels: Any = None,
    trim: float = 0.0,
    trim_k: int = 1,
    per_class: bool = False,
    on_progress: Callable[[int], None] = lambda new: None,
    **options: Any,
) -> Selection:
    """Chooses `size` of the rows of all ranks. Every rank gets the same result, for any number of ranks.

    features             [n_r, D] this rank's rows: array, tensor or memory map of float32, float64, float16 or uint8,
                         values within ±1e150
    labels, generations  [n_r] integers, one per row, if the strategy or `per_class` needs them
    reference            [., D] this rank's rows of real data, for strategies that match it or need it
    reference_labels     [.] integers, the classes of these rows: with `per_class` each class is matched to its own rows
                         of the reference, if there are at least 2
    strategy             a name of STRATEGIES in `catalogue.py`, of an entry point, or `module:attribute`
    metric               euclidean, cosine (distances 1 - cos) or whitened. Thresholds and radii are in units of the
                         metric; under cosine they are |u - v| of rows scaled to length 1
    trim                 share of all rows that is dropped before the choice: the rows with the largest distances to
                         their `trim_k`-th neighbours
    per_class            choose within each class of `labels`, as equal a number as possible from each; the result takes
                         one row of each class in turn
    on_progress          called with the number of rows newly chosen, by strategies that work in blocks
    options              keyword-only parameters of the strategy
    TF32 and reduced-precision sums are off during the call, also for the other threads of the process.
    Raises UserError for unusable input, unknown names (the nearest is shown) and options the strategy does not have,
    and InexactProductError when matrix products are less exact than promised.
    """
    world = World() if world is None else world
    function: Strategy = STRATEGIES.load(strategy)
    check_options(strategy, {**options, "trim": trim, "trim_k": trim_k, "per_class": per_class}, also=OF_A_RUN)
    DISTANCES.check(metric)
    own = checked(features, "features", world)
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= own.total:
        raise UserError(f"size: must be an integer between 1 and the {own.total} rows there are, is {size}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed: must be an integer of at least 0, is {seed}")
    real = None if reference is None else checked(reference, "reference", world)
    if real is not None and (real.total == 0 or real.rows.shape[1] != own.rows.shape[1]):
        shape = [real.total, real.rows.shape[1]]
        raise UserError(f"reference: must hold rows of {own.rows.shape[1]} features, has shape {shape}")
    check_rows(metric, own, "features")
    if real is not None:
        check_device(own, real, "features", "reference")
        check_rows(metric, real, "reference")
    fitted = fit_metric(metric, own)
    own = _mapped(fitted, own, "features")
    problem = Problem(
        own,
        int(size),
        int(seed),
        _integers(labels, "labels", own),
        _integers(generations, "generations", own),
        None if real is None else _mapped(fitted, real, "reference"),
        on_progress,
    )
    kept = None
    check_fit(strategy, {**options, "trim": trim, "trim_k": trim_k}, int(size), own.total)
    if trim != 0:
        kept = _trimmed(own, trim, trim_k)
        problem = _subset(problem, kept)
    if per_class:
        known = None if real is None else _integers(reference_labels, "reference_labels", real)
        chosen = _per_class(problem, known, function, options)
    else:
        chosen = function(problem, **options)
    if kept is not None:
        chosen = replace(chosen, ids=kept.numpy()[chosen.ids], info={**chosen.info, "trimmed": own.total - len(kept)})
    return chosen


def _mapped(fitted: Metric, own: RankRows, name: str) -> RankRows:
    rows = fitted.rows(own.rows)
    check_mapped(fitted, own, name, rows)
    return replace(own, rows=rows)


def _integers(values: Any, name: str, own: RankRows) -> Tensor | None:
    """One integer per row of this rank -> the integers of all ranks, int64 [N] on the host."""
    if values is None:
        return None

    def checked() -> NDArray[np.int64]:
        array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        n = len(own.rows)
        if array.shape != (n,) or not (n == 0 or np.issubdtype(array.dtype, np.integer)):
            shape = list(array.shape)
            raise UserError(f"{name}: must be {n} integers, one per row, is {array.dtype} of shape {shape}")
        return array.astype(np.int64)

    return own.world.gather_rows(torch.from_numpy(own.world.agree(checked)), own.counts)


def _subset(problem: Problem, ids: Tensor, size: int | None = None) -> Problem:
    """The same problem on some of the rows. `ids` are their global ids, ascending; they are renumbered 0, 1, 2, ..."""
    part = _part(problem.candidates, ids)
    labels, generations = (None if x is None else x[ids] for x in (problem.labels, problem.generations))
    size = problem.size if size is None else size
    return Problem(part, size, problem.seed, labels, generations, problem.reference, problem.on_progress)


def _part(own: RankRows, ids: Tensor) -> RankRows:
    """Some of the rows of all ranks, by their global ids, ascending."""
    _, local = own.owned(ids)
    bounds = torch.tensor(own.counts).cumsum(0)
    counts = torch.bincount(torch.bucketize(ids, bounds, right=True), minlength=len(bounds))
    return RankRows(own.rows[local.to(own.rows.device)], tuple(counts.tolist()), own.world)


def _trimmed(own: RankRows, trim: float, k: int) -> Tensor:
    """The ids left after dropping the share `trim` with the largest k-th neighbour distances (ties: larger ids)."""
    distances, _ = nearest(own.rows, own.rows, k, exclude_self=True, world=own.world)
    far = own.world.gather_rows(torch.from_numpy(distances[:, -1].copy()), own.counts)
    order = torch.argsort(far, stable=True)
    return order[: own.total - int(trim * own.total)].sort().values


def _per_class(problem: Problem, known: Tensor | None, function: Strategy, options: dict[str, Any]) -> Selection:
    """known: int64 classes of the reference's rows on all ranks. A class with fewer than 2 of them has them all."""
    if problem.labels is None:
        raise UserError("per_class: needs labels, one integer a row")
    classes = torch.unique(problem.labels)
    members = [(problem.labels == label).nonzero()[:, 0] for label in classes]
    shares = quotas([len(m) for m in members], problem.size)
    turns: list[tuple[int, int, int]] = []
    for c, (ids, share) in enumerate(zip(members, shares, strict=True)):
        if share:
            part = _subset(problem, ids, share)
            real = torch.empty(0) if known is None else (known == classes[c]).nonzero()[:, 0]
            if problem.reference is not None and len(real) >= 2:
                part = replace(part, reference=_part(problem.reference, real))
            chosen = function(part, **options)
            turns += [(turn, c, int(i)) for turn, i in enumerate(ids.numpy()[chosen.ids])]
    ids = torch.tensor([i for _, _, i in sorted(turns)], dtype=torch.int64)
    return Selection(ids.numpy(), order_radii(problem.candidates, ids).cpu().numpy(), {"classes": len(members)})
