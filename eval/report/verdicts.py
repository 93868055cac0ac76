"""Which values of a measure are better: direction marks, better and worse between arms, and the best arm.

facts of the measures  ->  direction
values by seed, paired  ->  verdict, sides, best
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from entroloop.eval.catalogue import SHOWN, title
from entroloop.eval.report.arms import Arm
from entroloop.eval.report.statistics import interval

SAME = 0.02  # with fewer than three pairs of seeds, relative changes below this count as none
# The headline gives the values of the first two; the third is the second in another unit.
_NAMED_ANYWAY = ("frechet_distance", "generalization_score", "generalization_score_ratio")

BySeed = Mapping[int, float]


def direction(measure: str) -> tuple[str, str]:
    """The mark of a measure and its words; empty for a fact about the training set and for a measure of the user's."""
    facts = SHOWN.get(measure)
    if facts is None or measure == "real_share":
        return "", ""
    if facts.higher_is_better is not None:
        return ("↑", "higher is better") if facts.higher_is_better else ("↓", "lower is better")
    if facts.ideal is not None:
        return f"→\N{NO-BREAK SPACE}{facts.ideal:g}", f"closer to {facts.ideal:g} is better"
    return "≈", "closer to real images is better"


def marked(measure: str, encoder: str = "") -> str:
    """The measure's title in the features of an encoder, with its direction mark."""
    return f"{title(measure, encoder)} {direction(measure)[0]}".rstrip()


def name(measure: str) -> str:
    """The title within a sentence: without its unit, and without a capital letter unless it is a symbol or acronym."""
    words, _, detail = title(measure).partition(" (")[0].partition(", ")
    words += f" ({detail})" if detail else ""
    proper = words.startswith("Fréchet") or len(words) < 4
    return words if proper else words[0].lower() + words[1:]


def cost(measure: str, value: float) -> float | None:
    """A number that is smaller the better the value is; None for a measure without a direction or an ideal value."""
    facts = SHOWN.get(measure)
    if facts is None:
        return None
    if facts.higher_is_better is not None:
        return -value if facts.higher_is_better else value
    return None if facts.ideal is None else abs(value - facts.ideal)


def verdict(measure: str, ours: BySeed, theirs: BySeed) -> int:
    """1 when our values are better than theirs, -1 when they are worse, 0 when there is no clear difference.

    With three or more seeds in common, the 95% Student interval of the paired differences has to exclude 0. With one or
    two, the means have to differ by more than SAME; without any, there is no verdict.
    """
    pairs = [(cost(measure, ours[seed]), cost(measure, theirs[seed])) for seed in ours if seed in theirs]
    found = [a - b for a, b in pairs if a is not None and b is not None]
    if not found:
        return 0
    if len(found) >= 3:
        low, high = interval(found)
    else:
        low = high = float(np.mean(found))
        if abs(low) <= SAME * float(np.mean([abs(theirs[seed]) for seed in ours if seed in theirs])):
            return 0
    return -1 if low > 0 else 1 if high < 0 else 0


def judged(groups: Sequence[Arm], encoder: str) -> list[str]:
    """The measures of the arms' rows in this encoder that have a direction, without those that the headline names."""
    found = {m for arm in groups for run in arm.runs for row in run.rows for m in row.measures.get(encoder, {})}
    return [m for m in SHOWN if m in found and m not in _NAMED_ANYWAY and cost(m, 0.0) is not None]


def sides(
    groups: Sequence[Arm], encoder: str, ours: tuple[Arm, int], theirs: tuple[Arm, int]
) -> tuple[list[str], list[str]]:
    """The judged measures in which an arm's generation is better than another's, and those in which it is worse."""
    found = {
        measure: verdict(measure, *(arm.by_seed(generation, encoder, measure) for arm, generation in (ours, theirs)))
        for measure in judged(groups, encoder)
    }
    return [m for m, side in found.items() if side > 0], [m for m, side in found.items() if side < 0]


def best(groups: Sequence[Arm], generation: int, encoder: str, measure: str) -> str | None:
    """Label of the arm whose interval against each other arm excludes 0; None where there is none.

    Fewer than three seeds in common allow no interval, so then no arm is the best.
    """
    values = {arm.label: arm.by_seed(generation, encoder, measure) for arm in groups}
    for label, ours in values.items():
        others = [theirs for other, theirs in values.items() if other != label]
        if others and all(len(ours.keys() & o.keys()) >= 3 and verdict(measure, ours, o) > 0 for o in others):
            return label
    return None
