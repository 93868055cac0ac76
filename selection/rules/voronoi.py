"""Voronoi selection: as equal a number of rows as possible from the cell of each reference row.

    Problem with a reference  ->  voronoi  ->  Selection

Nearest reference rows are exact (`entroloop.selection.neighbours`), so the ids do not depend on ranks or formats.
"""

from __future__ import annotations

import numpy as np
import torch

from entroloop.data.errors import UserError
from entroloop.selection.neighbours import nearest
from entroloop.selection.rules.problem import Problem, Selection


def voronoi(problem: Problem) -> Selection:
    """Every candidate belongs to the cell of its nearest reference row (ties: the smaller id). The rule takes the first
    candidate of every cell in the seeded order, then the second of every cell, and so on. `info["cells"]` is the number
    of cells with a candidate.

    Raises UserError without a reference.
    """
    own, reference = problem.candidates, problem.reference
    if reference is None:
        raise UserError("reference: voronoi needs rows of real data")
    _, found = nearest(own.rows, reference.rows, world=own.world)
    order = problem.order().numpy()
    cell = own.world.gather_rows(torch.from_numpy(found[:, 0].copy()), own.counts).numpy()[order]
    by_cell = np.argsort(cell, kind="stable")
    first = np.flatnonzero(np.diff(cell[by_cell], prepend=-1))  # where each cell begins
    turn = np.empty(len(order), dtype=np.int64)
    turn[by_cell] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    chosen = order[np.argsort(turn, kind="stable")[: problem.size]]
    return problem.selection(torch.from_numpy(chosen), cells=len(first))
