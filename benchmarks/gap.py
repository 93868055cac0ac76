"""The picture of docs/choosing.md: `python benchmarks/gap.py docs/results/vectors-*.jsonl`.

Share of real samples that greedy keeps, and the Fréchet distances of three strategies, against the spread gap of
generation 0. One point per sampler, the mean over seeds; bars are 95% intervals (the range for fewer than three seeds).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from entroloop.eval.report.statistics import interval
from paper import rows, study

COLOURS = {"random": "#7f7f7f", "greedy": "#d62728", "herding": "#1f77b4"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/gap.png"))
    options = parser.parse_args(arguments)
    doses = study.doses([run for path in options.files for run in rows.unpacked(path)])
    gaps = [study.first_gap(arms["random"]) for _, arms in doses]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    kept = [[100 * study.real(run) for run in arms["greedy"]] for _, arms in doses]
    draw(left, gaps, kept, "greedy")
    last = doses[0][1]["random"][0].planned - 1
    uniform = 100 / (last + 1)
    left.axhline(uniform, color=COLOURS["random"], linestyle=":")
    left.text(max(gaps), uniform, "uniform draw", ha="right", va="bottom", color=COLOURS["random"])
    left.set(ylabel=f"real samples that greedy keeps (%),\ngeneration {last}", ylim=(0, None))
    for strategy in study.SHOWN:
        draw(
            right, gaps, [[100 * study.distance(run, "pixel") for run in arms[strategy]] for _, arms in doses], strategy
        )
    right.set(ylabel=f"Fréchet distance (% of real variance),\ngeneration {last}", yscale="log")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel("spread gap of generation 0")
    figure.savefig(options.out, dpi=90)


def draw(axes: Axes, gaps: Sequence[float], values: Sequence[Sequence[float]], strategy: str) -> None:
    means = [float(np.mean(v)) for v in values]
    spans = [interval(v) for v in values]
    bars = [[max(0.0, m - low) for m, (low, _) in zip(means, spans, strict=True)]]
    bars += [[max(0.0, high - m) for m, (_, high) in zip(means, spans, strict=True)]]
    axes.errorbar(gaps, means, bars, marker="o", markersize=4, capsize=2, color=COLOURS[strategy], label=strategy)


if __name__ == "__main__":
    main()
