"""Voronoi selection takes as equally as possible from the cell of each reference row, at any number of ranks."""

import numpy as np
import pytest
from slow_references import hard_cases, split_with_gap
from slow_references import nearest as slow_nearest
from thread_world import on_threads

from entroloop.data.errors import UserError
from entroloop.selection import select

SEED = 5


def slow_voronoi(x, reference, size):
    """Round by round: the first candidate in the seeded order of every cell that has one left."""
    cell = slow_nearest(x, reference, 1, False)[1][:, 0]
    waiting = list(np.random.default_rng([SEED, *b"order"]).permutation(len(x)))
    chosen: list[int] = []
    while len(chosen) < size:
        seen, rest = set(), []
        for candidate in waiting:
            if cell[candidate] in seen:
                rest.append(candidate)
            else:
                seen.add(cell[candidate])
                chosen.append(candidate)
        waiting = rest
    return np.array(chosen[:size]), len(np.unique(cell))


def _on_rank(world, x, reference, size):
    mine, real = (split_with_gap(rows, world.size)[world.rank] for rows in (x, reference))
    return select(mine, size, "voronoi", seed=SEED, world=world, reference=real)


@pytest.mark.parametrize("name", hard_cases())
@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize("sizes", [(2, 3), pytest.param((8, 16), marks=pytest.mark.slow)])
def test_the_slow_form_at_any_number_of_ranks(name, share, sizes):
    x = hard_cases()[name]
    reference, size = x[:: max(1, len(x) // 11)], max(1, int(share * len(x)))
    ids, cells = slow_voronoi(x, reference, size)
    alone = select(x, size, "voronoi", seed=SEED, reference=reference)
    np.testing.assert_array_equal(alone.ids, ids)
    assert alone.info == {"cells": cells}
    for world in sizes:
        for found in on_threads(world, _on_rank, x, reference, size):
            np.testing.assert_array_equal(found.ids, ids)
            np.testing.assert_array_equal(found.radii, alone.radii)


def test_cells_give_as_equally_as_they_can():
    x = np.repeat([0.0, 10.0, 20.0], [5, 30, 100])[:, None] + 0.01 * np.arange(135)[:, None] / 135
    chosen = select(x, 65, "voronoi", reference=np.array([[0.0], [10.0], [20.0], [99.0]]))
    assert np.bincount((x[chosen.ids, 0] / 10).astype(int)).tolist() == [5, 30, 30]


def test_a_reference_is_needed():
    with pytest.raises(UserError, match=r"^reference: voronoi needs"):
        select(np.ones((9, 2)), 5, "voronoi")
