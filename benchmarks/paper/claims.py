"""The runs that count in the tables of docs/results.md: the arms of finished runs, at the seeds that all arms have."""

from __future__ import annotations

from collections.abc import Sequence

from entroloop.data.errors import UserError
from entroloop.eval.report import statistics
from entroloop.eval.report.arms import Arm, arms, comparable
from entroloop.eval.report.runs import Run


def finished_arms(runs: Sequence[Run], labels: Sequence[str] = ()) -> list[Arm]:
    """The arms of the finished runs, or only those with the given labels, at the seeds that all these arms have.

    Raises UserError for an unknown label, when no seed is finished in every arm, and when entropies were estimated from
    different numbers of images.
    """
    groups = arms([run for run in runs if run.finished])
    if labels:
        groups = [named(groups, label) for label in labels]
    finished = [run for arm in groups for run in arm.runs]
    even = comparable(groups)
    if not even.seeds:
        raise UserError("no seed is finished in every arm: finish the sweeps, or give fewer folders")
    check_equal_n(finished)
    return even.groups


def check_equal_n(runs: Sequence[Run]) -> None:
    """Raises UserError unless all entropies are of the same number of images, because the estimate depends on it."""
    found = statistics.entropy_sizes(runs)
    if len(found) > 1:
        sizes = ", ".join(f"{n} in {name}" for n, name in found.items())
        raise UserError(f"training_entropy is of different numbers of images ({sizes}): set evaluation.entropy_size")


def named(groups: Sequence[Arm], label: str) -> Arm:
    """The arm with that label. Raises UserError when there is none."""
    found = next((arm for arm in groups if arm.label == label), None)
    if found is None:
        raise UserError(f"{label}: is no arm; these are: {'; '.join(arm.label for arm in groups)}")
    return found
