"""Random choice: uniform, or with equal shares per generation or class.

Problem  ->  Selection
"""

from __future__ import annotations

import torch
from torch import Tensor

from entroloop.data.errors import UserError
from entroloop.selection.rules.problem import Problem, Selection, quotas


def random(problem: Problem, *, stratified: bool = False) -> Selection:
    """Uniform, or as equal a number as possible from each generation (`stratified`, which needs `generations`)."""
    if not stratified:
        return problem.selection(problem.order()[: problem.size])
    if problem.generations is None:
        raise UserError("generations: stratified random selection needs one integer per row")
    return problem.selection(_balanced(problem, problem.generations))


def random_class_balanced(problem: Problem) -> Selection:
    """As equal a number as possible from each class, at random within the class. Raises UserError without labels."""
    if problem.labels is None:
        raise UserError("labels: random-class-balanced needs one integer per row")
    return problem.selection(_balanced(problem, problem.labels))


def _balanced(problem: Problem, groups: Tensor) -> Tensor:
    order = problem.order()
    members = [order[groups[order] == group] for group in torch.unique(groups)]
    shares = quotas([len(m) for m in members], problem.size)
    taken = torch.zeros(len(order), dtype=torch.bool)
    for ids, share in zip(members, shares, strict=True):
        taken[ids[:share]] = True
    return order[taken[order]]
