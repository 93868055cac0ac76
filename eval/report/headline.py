"""The first sentences of a report: the drift of training on generated data, the comparison of the arms, the certainty.

    Arms  ->  comparable (equal seeds)  ->  headline, certainty

Every sentence is computed from the rows; no result is written into the code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entroloop.eval.catalogue import space
from entroloop.eval.report import statistics, verdicts
from entroloop.eval.report.arms import Arm, Comparable, baseline_arm, comparable
from entroloop.eval.report.runs import REAL_ONLY, Run
from entroloop.eval.report.statistics import interval, mean_value, number, paired
from entroloop.eval.report.verdicts import SAME
from entroloop.selection.catalogue import STRATEGIES

NAMED = 4  # a sentence names all arms only up to this number


def headline(groups: Sequence[Arm], score_encoder: str, distance_encoder: str) -> list[str]:
    """The drift of the first arm, the comparison of all arms at the last generation, and the spread gap.

    Each sentence is about one feature space. The drift and the comparison say what got worse, too.
    """
    even = comparable(groups)
    if even.generation is None:
        return ["No generation has been measured yet."]
    if even.generation == 0:
        only = "Only generation 0, trained on real images, has been measured so far: nothing to compare yet."
        return [only, *_spread(even, score_encoder)]
    out = _drift(even, score_encoder, distance_encoder)
    if len(even.measured) > 1:
        out += _comparison(even, score_encoder, distance_encoder)
    return [*out, *_spread(even, score_encoder)]


def certainty(groups: Sequence[Arm], distance_encoder: str) -> list[str]:
    """How certain the headline is: seeds, encoders, and the numbers that cannot be compared."""
    even = comparable(groups)
    if not even.generation:
        return []
    out = [
        _seeds(even),
        *_selecting([run for arm in even.measured for run in arm.runs], distance_encoder),
        *_sizes(even),
        *_entropies([run for arm in groups for run in arm.runs]),
    ]
    if len(even.measured) > 1 and not any(baseline_arm(arm, even.measured) for arm in even.measured):
        out.append("No arm selects at random and differs from another arm in the selection only: there is no baseline.")
    if even.left_out:
        names = [run.name for run in even.left_out]
        named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        out.append(
            f"Left out of every mean, because not every arm has their seed at generation {even.generation}: {named}."
        )
    return out


def change(before: float, after: float) -> str:
    """The change of a measure from one value to another, in words."""
    span = f"({number(before)} → {number(after)})"
    if abs(after - before) <= SAME * abs(before):
        return f"stays about the same {span}"
    if before <= 0 or after <= 0:
        return f"{'rises' if after > before else 'falls'} {span}"
    if after >= 2 * before:
        return f"grows {number(after / before)}-fold {span}"
    return f"{'rises' if after > before else 'falls'} by {abs(after / before - 1):.0%} {span}"


def selecting_encoders(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Encoder -> strategies that selected in its features; random selection and the control use no encoder."""
    out: dict[str, list[str]] = {}
    for run in runs:
        encoder = space(str(run.config.get("selection.encoder") or ""), run.vectors)
        if encoder and run.strategy not in ("random", REAL_ONLY) and run.strategy not in out.setdefault(encoder, []):
            out[encoder].append(run.strategy)
    return out


def training_sizes(arm: Arm, generation: int) -> set[int]:
    """The numbers of images that the arm's runs trained on in a generation."""
    rows = [row for run in arm.runs for row in run.rows if row.generation == generation]
    return {size for row in rows if (size := row.context.n_training)}


def equal_sizes(groups: Sequence[Arm], generation: int) -> bool:
    """Whether all training sets have the same size; only then are generalization scores comparable."""
    return len(set().union(*(training_sizes(arm, generation) for arm in groups))) <= 1


def difference(arm: Arm, base: Arm, generation: int, encoder: str, measure: str) -> str:
    """The change against `base`, relative to the mean of `base`, with its interval and whether the interval contains 0.

    With fewer than three pairs of equal seed, the change alone.
    """
    whole, value = (mean_value(one, generation, encoder, measure) for one in (base, arm))
    if not whole or value is None:
        return ""
    pairs = paired(arm, base, generation, encoder, measure)
    if len(pairs) < 3:
        return _percent((value - whole) / abs(whole))
    low, high = interval([pair / abs(whole) for pair in pairs])
    words = f"{_percent(float(np.mean(pairs)) / abs(whole))}, 95% interval {_percent(low)} to {_percent(high)}"
    return f"{words}, which contains 0: no clear difference" if low <= 0 <= high else words


def _percent(value: float) -> str:
    return f"{value:+.0%}".replace("-", "\N{MINUS SIGN}")


def _seeds(even: Comparable) -> str:
    if not even.seeds:
        counts = ", ".join(f"{len(arm.runs)} with {arm.label}" for arm in even.measured)
        return f"The arms have no seed in common, so seeds are not paired ({counts})."
    if len(even.seeds) < 3:
        seeds = "One seed ({}) shows" if len(even.seeds) == 1 else "Two seeds ({}) show"
        told = seeds.format(_listed([str(seed) for seed in even.seeds]))
        return f"{told} the direction of an effect, not its magnitude; changes below {SAME:.0%} count as none."
    return (
        f"Means over the {len(even.seeds)} seeds {', '.join(map(str, even.seeds))}. Better and worse mean that the 95% "
        "interval of the differences, paired by seed, excludes 0; it is not corrected for the number of measures."
    )


def _selecting(runs: Sequence[Run], distance_encoder: str) -> list[str]:
    found = selecting_encoders(runs)
    if not found:
        return []
    where = "; ".join(f"{', '.join(strategies)} in {encoder} features" for encoder, strategies in found.items())
    out = f"Selection: {where}."
    if distance_encoder in found:
        out += (
            " Every measured encoder was also used for selection, so the Fréchet distance is computed in a space that "
            "selection optimised; a low value may reflect that alone."
        )
    return [out]


def _sizes(even: Comparable) -> list[str]:
    last = even.generation or 0
    if not equal_sizes(even.measured, last):
        by_size: dict[str, list[str]] = {}
        for arm in even.measured:
            by_size.setdefault(_listed([str(n) for n in sorted(training_sizes(arm, last))]), []).append(arm.label)
        named = {n: ", ".join(of) if len(of) <= NAMED else f"{len(of)} arms" for n, of in by_size.items()}
        sizes = "; ".join(f"{size} with {labels}" for size, labels in named.items())
        return [
            f"Training sets differ in size at generation {last} ({sizes}). A larger training set alone lowers the "
            "generalization score, so it is not compared between these arms; compare the score relative to real."
        ]
    first = even.measured[0]
    before, after = training_sizes(first, 0), training_sizes(first, last)
    if before and after and before != after:
        return [
            f"The training set grows from {max(before)} to {max(after)} images, which alone lowers the generalization "
            "score."
        ]
    return []


def _entropies(runs: Sequence[Run]) -> list[str]:
    found = statistics.entropy_sizes(runs)
    if len(found) < 2:
        return []
    sizes = _listed([f"{n} in {name}" for n, name in found.items()])
    return [
        f"Training-set entropies were estimated from different numbers of images ({sizes}) and are not comparable, so "
        "their correlation with the generalization score is left out. evaluation.entropy_size sets the number."
    ]


def _drift(even: Comparable, score_encoder: str, distance_encoder: str) -> list[str]:
    """The change of the first arm since generation 0: one sentence or two per feature space."""
    arm, last = even.measured[0], even.generation or 0
    where = f" under {arm.runs[0].paradigm}" if arm.runs[0].paradigm else ""
    span = f"Over {last} generation{'s' if last > 1 else ''} of training on generated images"
    alone = len(even.measured) == 1 or any(baseline_arm(other, even.measured) is arm for other in even.measured)
    which = "" if alone else " (only the first of the arms)"
    out: list[str] = []
    for encoder in dict.fromkeys((distance_encoder, score_encoder)):
        words = []
        for measure, own in (("frechet_distance", distance_encoder), ("generalization_score", score_encoder)):
            first, now = (mean_value(arm, g, own, measure) for g in (0, last))
            if own == encoder and first is not None and now is not None:
                to = " to held-out images" if measure == "frechet_distance" else ""
                words.append(f"the {verdicts.name(measure)}{to} {change(first, now)}")
        lead = f"{span}{where} with {arm.label} selection{which}, " if not out else ""
        told = " and ".join(words) or "nothing was measured"
        out.append(f"{lead}{told if lead else told[0].upper() + told[1:]} in {encoder} features.")
        better, worse = verdicts.sides(even.measured, encoder, (arm, last), (arm, 0))
        parts = [f"{_named(of)} {verb}" for of, verb in ((worse, "got worse"), (better, "got better")) if of]
        if parts:
            out.append(f"In {encoder} features, {'; '.join(parts)}.")
    return out


def _spread(even: Comparable, score_encoder: str) -> list[str]:
    """The spread gap and its meaning for selection, in features that selected if any did.

    An arm that selects at random shows the gap that its last generation has reached. A strategy changes the gap, so
    without such an arm the sentence is about generation 0.
    """
    runs = [run for arm in even.measured for run in arm.runs]
    names = [name for name in selecting_encoders(runs) if any(name in row.measures for run in runs for row in run.rows)]
    encoder = names[0] if names else score_encoder
    arm = even.measured[0]
    last = (even.generation or 0) if arm.strategy == "random" else 0
    gap = mean_value(arm, last, encoder, "spread_gap")
    if gap is None:
        return []
    spreading = ", ".join(name for name in STRATEGIES.built_in if STRATEGIES.built_in[name].spreads)
    if gap > 0:
        sign, what, then = "+", "more", "prefers defects to real images"
    else:
        sign, what = "", "less"
        then = "keeps more real images than chance and raises recall and coverage, but not precision"
    with_whom = f" with {arm.label}" if last else ""
    return [
        f"The spread gap of generation {last}{with_whom} is {sign}{number(gap)} in {encoder} features: its samples are "
        f"{what} spread than held-out images, so a strategy that spreads the training set ({spreading}) {then}."
    ]


def _comparison(even: Comparable, score_encoder: str, distance_encoder: str) -> list[str]:
    """All arms at the last generation, each with its change against the arm that selects at random if there is one."""
    last, groups = even.generation or 0, even.measured
    distances = {arm.label: mean_value(arm, last, distance_encoder, "frechet_distance") for arm in groups}
    groups = [arm for arm in groups if distances[arm.label] is not None]
    if len(groups) < 2:
        return []
    first, shown = groups[0], groups[1:]
    lead = ""
    if len(shown) > NAMED:
        ordered = sorted(shown, key=lambda arm: distances[arm.label] or 0)
        shown = [ordered[0], ordered[-1]]
        lead = f"among the {len(groups) - 1} others, the lowest and the highest are "
    phrases = []
    for arm in shown:
        base = baseline_arm(arm, groups)
        words = difference(arm, base, last, distance_encoder, "frechet_distance") if base else ""
        against = f" against {base.label}" if base and base is not first else ""
        value = number(distances[arm.label])
        phrases.append(f"{value} with {arm.label}{f' ({words}{against})' if words else ''}")
    at = f"At generation {last} the Fréchet distance in {distance_encoder} features is"
    out = [f"{at} {number(distances[first.label])} with {first.label}; {lead}{_listed(phrases)}."]
    for arm in shown:
        if base := baseline_arm(arm, groups):
            out += _trade(arm, base, last, distance_encoder, groups)
    scores = [(mean_value(arm, last, score_encoder, "generalization_score"), arm.label) for arm in [first, *shown]]
    known = [f"{number(value)} ({label})" for value, label in scores if value is not None]
    if known and equal_sizes(groups, last):
        out.append(f"The generalization score in {score_encoder} features is {_listed(known)}.")
    return out


def _trade(arm: Arm, base: Arm, generation: int, encoder: str, groups: Sequence[Arm]) -> list[str]:
    """The measures, other than the Fréchet distance, in which an arm is better and worse than its baseline."""
    better, worse = verdicts.sides(groups, encoder, (arm, generation), (base, generation))
    parts = [f"{side} in {_named(of)}" for side, of in (("worse", worse), ("better", better)) if of]
    return [f"In {encoder} features, {arm.label} is {' and '.join(parts)} than {base.label}."] if parts else []


def _named(measures: Sequence[str]) -> str:
    return _listed([verdicts.name(measure) for measure in measures])


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "unknown"
