"""The tables of the study of the spread gap: strategies at one sampler, the dose of the gap, and the claims.

    [Run]  ->  strategies | dose | verdicts

Fréchet distances (FD) are in percent of the total variance of held-out real data. Intervals are those of
`statistics.interval`; differences are between runs of equal seed, in percent of the other arm's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from entroloop.data.errors import UserError
from entroloop.data.registry import is_own
from entroloop.eval.report.runs import REAL_ONLY, Run
from entroloop.eval.report.statistics import interval, mean_and_interval, number
from paper.tables import markdown

GAP = "spread_gap"
UNDER, OVER = "euler 6, sigma_max 0.7", "heun 12, sigma_max 20"  # samples less and more spread than real ones
PUBLISHED = ("greedy", "threshold-decay")  # the strategies of the paper
SHOWN = ("random", "greedy", "herding")
_PLAIN = {"loop.paradigm": "accumulate-subsample", "loop.candidates": 1, "loop.draw": "uniform"}
_MEANS = ("precision", "recall", "coverage")

Arms = dict[str, list[Run]]
Figure = Callable[[Run], float]


def label(run: Run) -> str:
    """The strategy, and how the run differs from one candidate per sample in a pool that accumulates."""
    if run.config.get("loop.all_candidates"):
        return "all candidates"
    told = [f"{value}" for key, value in _items(run, _PLAIN) if key != "loop.candidates"]
    told += [f"c = {value}" for key, value in _items(run, _PLAIN) if key == "loop.candidates"]
    told += [f"{key.rpartition('.')[2]} {value}" for key, value in run.config.items() if ".options." in key and value]
    return f"{run.strategy} ({', '.join(told)})" if told else run.strategy


def _items(run: Run, usual: dict[str, object]) -> Iterable[tuple[str, object]]:
    return ((key, run.config[key]) for key in usual if run.config[key] != usual[key])


def sampler(run: Run) -> str:
    kind, steps, sigma, heat = (run.config[f"sample.{key}"] for key in ("sampler", "steps", "sigma_max", "temperature"))
    return f"{kind} {steps}, sigma_max {sigma:g}" + (f", temperature {heat:g}" if heat != 1 else "")


def arms_at(runs: Sequence[Run], name: str) -> Arms:
    """The arms of one sampler by label, `random` first. Raises UserError when there is no `random`."""
    arms: Arms = {"random": []}
    for run in runs:
        if sampler(run) == name:
            arms.setdefault(label(run), []).append(run)
    if not arms["random"]:
        raise UserError(f"{name}: has no finished run of `random`; samplers are {sorted(set(map(sampler, runs)))}")
    return arms


# --- figures of one run ---------------------------------------------------------------------------------------------


def value(run: Run, encoder: str, measure: str, generation: int = -1) -> float:
    """A measure at a generation, -1 for the last one."""
    found = run.value(generation % run.planned, encoder, measure)
    if found is None:
        raise UserError(f"{run.name}: generation {generation % run.planned} has no {measure} in {encoder}")
    return found


def distance(run: Run, encoder: str, generation: int = -1) -> float:
    variance = run.baseline.value(encoder, "covariance_trace") if run.baseline else None
    if not variance:
        raise UserError(f"{run.name}: has no row of real data")
    return value(run, encoder, "frechet_distance", generation) / variance


def real(run: Run) -> float:
    return value(run, "", "real_share")


def by_seed(runs: Iterable[Run], figure: Figure) -> dict[int, float]:
    return {run.seed: figure(run) for run in runs}


def differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Per seed of both, relative to the mean of theirs over these seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    whole = float(np.mean([theirs[seed] for seed in seeds]))
    return [(ours[seed] - theirs[seed]) / whole for seed in seeds]


# --- how a table shows them -----------------------------------------------------------------------------------------


def encoders_of(runs: Iterable[Run]) -> list[str]:
    return sorted({name for run in runs for row in run.rows for name in row.measures}, key=lambda name: name != "pixel")


def word(encoder: str) -> str:
    return "vectors" if encoder == "pixel" else encoder


def percent(ratio: float) -> str:
    return f"{number(100 * ratio)}%"


def change(ratio: float) -> str:
    return f"{ratio:+.0%}" if ratio < 9 else f"{1 + ratio:.0f} times"


def signed(gap: float) -> str:
    return f"{gap:+.2f}".replace("-", "\N{MINUS SIGN}")


def mean(runs: Iterable[Run], figure: Figure) -> float:
    return float(np.mean([figure(run) for run in runs]))


# --- tables ---------------------------------------------------------------------------------------------------------


def strategies(runs: Sequence[Run], name: str) -> str:
    """One line per arm at the last generation, then generation 0, which arms of equal seed share, and held-out real
    data in place of samples."""
    arms = arms_at(runs, name)
    encoders = encoders_of(runs)
    own = sorted({m for run in runs for row in run.rows for m in row.measures["pixel"] if is_own(m)})
    heads = ["arm", "seeds", "real"]
    for encoder in encoders:
        heads += [f"FD, {word(encoder)}", "against random"]
    heads += [f"{m}, {word(encoder)}" for encoder in encoders for m in _MEANS] + ["gap"]
    heads += [m.partition(":")[2].replace("_", " ") for m in own]

    def line(title: str, members: Sequence[Run], generation: int = -1) -> list[str]:
        share = mean(members, lambda run: value(run, "", "real_share", generation))
        cells = [title, str(len(members)), f"{share:.0%}"]
        for encoder in encoders:
            ours = by_seed(members, lambda run, e=encoder: distance(run, e, generation))  # type: ignore[misc]
            theirs = by_seed(arms["random"], lambda run, e=encoder: distance(run, e))  # type: ignore[misc]
            cells.append(mean_and_interval(list(ours.values()), percent))
            cells.append("" if title == "random" else mean_and_interval(differences(ours, theirs), change))
        for encoder in encoders:
            cells += [f"{mean(members, lambda r, e=encoder, m=m: value(r, e, m, generation)):.2f}" for m in _MEANS]  # type: ignore[misc]
        cells.append(signed(mean(members, lambda run: value(run, "pixel", GAP, generation))))
        return cells + [number(mean(members, lambda r, m=m: value(r, "pixel", m, generation))) for m in own]  # type: ignore[misc]

    lines = [line(*arm) for arm in arms.items()]
    lines.append(line("generation 0", arms["random"], 0))
    lines.append(line("held-out real data", [_real_data(run) for run in arms["random"]], 0))
    return markdown(heads, lines)


def _real_data(run: Run) -> Run:
    """A run whose generation 0 is the row of held-out real data."""
    if run.baseline is None:
        raise UserError(f"{run.name}: has no row of real data")
    return replace(run, rows=(run.baseline.model_copy(update={"generation": 0}),))


def doses(runs: Sequence[Run]) -> list[tuple[str, Arms]]:
    """Samplers with runs of all three strategies, at the seeds that these share, by falling gap of generation 0."""
    found = []
    for name in dict.fromkeys(map(sampler, runs)):
        arms = arms_at(runs, name)
        if all(strategy in arms for strategy in SHOWN):
            even = set.intersection(*({run.seed for run in arms[s]} for s in SHOWN))
            found.append((name, {s: [run for run in arms[s] if run.seed in even] for s in SHOWN}))
    return sorted(found, key=lambda one: -first_gap(one[1]["random"]))


def first_gap(runs: Iterable[Run]) -> float:
    return mean(runs, lambda run: value(run, "pixel", GAP, 0))


def dose(runs: Sequence[Run]) -> str:
    """One line per sampler, by falling gap of generation 0."""
    heads = ["sampler", "seeds", "gap of generation 0", "real that greedy keeps", *(f"FD, {s}" for s in SHOWN)]
    lines = []
    for name, arms in doses(runs):
        cells = [name, str(len(arms["random"])), signed(first_gap(arms["random"]))]
        cells.append(mean_and_interval([real(run) for run in arms["greedy"]], "{:.1%}".format))
        cells += [mean_and_interval([distance(run, "pixel") for run in arms[s]], percent) for s in SHOWN]
        lines.append(cells)
    return markdown(heads, lines)


# --- claims ---------------------------------------------------------------------------------------------------------


def verdict(found: Sequence[float]) -> str:
    """Whether the figures are below 0."""
    low, high = interval(found)
    return "holds" if high < 0 else "does not hold" if low > 0 else "not shown"


def verdicts(runs: Sequence[Run]) -> str:
    """The claims, each with its figure in every space and its verdict."""
    lines = []

    def line(claim: str, figures: Callable[[str], list[float]]) -> None:
        for encoder in encoders_of(runs):
            found = figures(encoder)
            lines.append([claim, word(encoder), mean_and_interval(found, change), str(len(found)), verdict(found)])

    def at(arms: Arms, arm: str, encoder: str, generation: int = -1) -> dict[int, float]:
        return by_seed(arms.get(arm, []), lambda run: distance(run, encoder, generation))

    def best(arms: Arms, names: Sequence[str], encoder: str) -> dict[int, float]:
        """Distances of the arm with the lowest mean, of those that have runs."""
        found = [at(arms, name, encoder) for name in names if name in arms]
        return min(found, key=lambda distances: float(np.mean(list(distances.values()))))

    under, over = arms_at(runs, UNDER), arms_at(runs, OVER)
    line(
        "(i) B: the FD of random rises from generation 0 to 7 (generation 0 against 7)",
        lambda e: differences(at(under, "random", e, 0), at(under, "random", e)),
    )
    line("(ii) B: greedy is below random", lambda e: differences(at(under, "greedy", e), at(under, "random", e)))
    line(
        "(ii) A: greedy is above random (random against greedy)",
        lambda e: differences(at(over, "random", e), at(over, "greedy", e)),
    )
    kept = [arms["greedy"] for _, arms in doses(runs)]
    shares = [mean(members, real) for members in kept]
    lines.append(
        [
            f"(iii) over {len(kept)} samplers: the smaller the gap, the more real vectors greedy keeps",
            "vectors",
            ", ".join(f"{share:.1%}" for share in shares),
            str(min(map(len, kept))),
            "holds" if all(a < b for a, b in pairwise(shares)) else "does not hold",
        ]
    )
    for regime, arms in (("B", under), ("A", over)):
        line(
            f"(iv) {regime}: herding is below the lower of random and greedy",
            lambda e, arms=arms: differences(at(arms, "herding", e), best(arms, ("random", "greedy"), e)),  # type: ignore[misc]
        )
        if REAL_ONLY in arms:
            line(
                f"control, {regime}: herding is below real-only",
                lambda e, arms=arms: differences(at(arms, "herding", e), at(arms, REAL_ONLY, e)),  # type: ignore[misc]
            )
    line(
        "(v) B: herding is below 90% of the paper's best",
        lambda e: [x + 0.1 for x in differences(at(under, "herding", e), best(under, PUBLISHED, e))],
    )
    return markdown(["claim", "space", "figure", "seeds", "verdict"], lines)
