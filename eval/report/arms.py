"""Arms: groups of runs that differ in the seed only, their labels, and the runs in them that can be compared.

[Run]  ->  arms  ->  [Arm]  ->  comparable  ->  the same arms, at the generation and seeds that all arms have
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from entroloop.eval.report.runs import REAL_ONLY, Run

# Keys that may differ between runs of one arm: the run's name, where it runs and how far it went.
_ASIDE = (
    "name", "modules", "seed", "generations", "out", "folder", "slurm", "tracking", "threads", "processes", "sweep",
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed."""

    label: str
    strategy: str
    rest: str  # other differences from the other arms: "accumulate", "replace, tau=3", …
    runs: tuple[Run, ...]

    @property
    def generations(self) -> list[int]:
        return sorted({generation for run in self.runs for generation in run.measured})

    def values(self, generation: int, encoder: str, measure: str) -> list[float]:
        found = (run.value(generation, encoder, measure) for run in self.runs)
        return [value for value in found if value is not None]

    def by_seed(self, generation: int, encoder: str, measure: str) -> dict[int, float]:
        found = {run.seed: run.value(generation, encoder, measure) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Keys whose values differ between runs (name and seed aside) -> the value in each run, None where it is absent."""
    keys = sorted({key for run in runs for key in run.config if not _aside(key)})
    found = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _aside(key: str) -> bool:
    if key.startswith("forked_from."):
        return key != "forked_from.generation"
    return key.split(".")[0] in _ASIDE or key.split(".")[-1] in ("seed", "name")


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Groups runs that differ in the seed only; each label names the fewest keys that tell the arms apart.

    With more than two such keys, the labels leave out a value that more than half of the arms share.
    The arms are in the order of their first run, with `random` first, since the others are compared with it.
    """
    differing = differences(runs)
    if REAL_ONLY in (strategies := [run.strategy for run in runs]):
        differing["selection.strategy"] = strategies
    groups: dict[str, list[int]] = {}
    for i in range(len(runs)):
        signature = json.dumps([differing[key][i] for key in differing], default=str)
        groups.setdefault(signature, []).append(i)
    naming = _telling_keys(differing, [members[0] for members in groups.values()])
    usual = {}
    for key in naming if len(naming) > 2 else ():
        values = [json.dumps(differing[key][members[0]], default=str) for members in groups.values()]
        usual[key] = next((value for value in values if values.count(value) > len(values) / 2), None)
    out = []
    for members in groups.values():
        first = members[0]
        told = [key for key in naming if json.dumps(differing[key][first], default=str) != usual.get(key)]
        rest = ", ".join(_short(key, differing[key][first]) for key in told)
        strategy = runs[first].strategy
        label = f"{strategy} ({rest})" if rest else strategy
        out.append(Arm(label, strategy, rest, tuple(sorted((runs[i] for i in members), key=lambda run: run.seed))))
    return sorted(out, key=lambda arm: arm.strategy != "random")


def _telling_keys(differing: Mapping[str, list[Any]], members: Iterable[int]) -> list[str]:
    """Keys, beyond the strategy, that are needed to tell these runs apart; the paradigm is tried first."""
    members = list(members)
    order = sorted((key for key in differing if key != "selection.strategy"), key=lambda key: key != "loop.paradigm")
    naming: list[str] = []

    def parts(keys: Sequence[str]) -> int:
        every = [key for key in ("selection.strategy", *keys) if key in differing]
        return len({json.dumps([differing[key][i] for key in every], default=str) for i in members})

    for key in order:
        if parts([*naming, key]) > parts(naming):
            naming.append(key)
    return naming


def _short(key: str, value: Any) -> str:
    if key == "loop.paradigm":
        return str(value)
    return f"{key.split('.')[-1]}={'none' if value is None else value}"


@dataclass(frozen=True)
class Comparable:
    """Arms reduced to comparable runs: in each arm, one run per seed that has reached `generation` in all arms.

    If the arms have no seed in common, `seeds` is empty and each arm keeps one run per seed that has reached
    `generation` in the arm. Arms without any row are unchanged.
    """

    groups: list[Arm]
    generation: int | None  # None: nothing has been measured
    seeds: tuple[int, ...]
    left_out: tuple[Run, ...]  # runs with rows that count in no mean

    @property
    def measured(self) -> list[Arm]:
        return [arm for arm in self.groups if arm.generations]


def comparable(groups: Sequence[Arm]) -> Comparable:
    """The last generation that at least one seed has reached in every arm with rows, and the runs that count there."""
    measured = [arm for arm in groups if arm.generations]
    furthest = {arm.label: {run.seed: run for run in sorted(arm.runs, key=_reached)} for arm in measured}
    shared = set.intersection(*map(set, furthest.values())) if furthest else set()
    reached = {seed: min(_reached(runs[seed]) for runs in furthest.values()) for seed in shared}
    last = max(reached.values(), default=-1)
    seeds = tuple(sorted(seed for seed in reached if reached[seed] == last)) if last >= 0 else ()
    if not seeds:
        last = min((max(arm.generations) for arm in measured), default=-1)
    kept = []
    for arm in groups:
        if runs := furthest.get(arm.label):
            counted = seeds or [seed for seed in sorted(runs) if _reached(runs[seed]) >= last]
            arm = replace(arm, runs=tuple(runs[seed] for seed in counted))
        kept.append(arm)
    counting = {id(run) for arm in kept for run in arm.runs}
    left_out = tuple(run for arm in measured for run in arm.runs if run.rows and id(run) not in counting)
    return Comparable(kept, last if last >= 0 else None, seeds, left_out)


def _reached(run: Run) -> int:
    return max(run.measured, default=-1)


def baseline_arm(arm: Arm, groups: Sequence[Arm]) -> Arm | None:
    """The arm that selects at random and differs from this one in the selection only; None where there is none."""
    if arm.strategy == "random":
        return None
    alike = [
        other for other in groups if other.strategy == "random" and _differ_in_selection(arm.runs[0], other.runs[0])
    ]
    return min(alike, key=lambda other: other.rest != arm.rest, default=None)


def _differ_in_selection(a: Run, b: Run) -> bool:
    """Whether runs differ in the selection only.

    `loop.candidates` may differ, because selection needs more candidates; `keep` may, because it changes no number; the
    real samples that are kept and those that are the reference belong to the selection.
    """
    free = ("selection.", "keep.", "loop.candidates", "loop.keep_real", "data.trusted")
    return all(key.startswith(free) for key in differences([a, b]))
