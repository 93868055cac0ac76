"""Effect of the threshold filter's settings on the sealed pools of runs: selected again, without training.

    run  ->  pool of the generation after its last (real images, then c N samples of every generation)  ->  N chosen

Pixels only, so that no encoder is needed. P candidates, N chosen, D pixels, c candidates factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.store.dataset import Dataset
from entroloop.eval.report.runs import Run
from entroloop.eval.report.statistics import mean_and_interval
from entroloop.selection.choose import select
from entroloop.selection.entropy import kl_entropy
from entroloop.selection.rules.problem import Selection
from paper.tables import markdown

FACTORS = (0.25, 0.5, 1.0, 2.0)  # of the default threshold, the 95 % quantile of random pairs
DECAYS = (0.5, 0.8, 0.95, 0.99)
CANDIDATES = (1, 2, 4)


def pool(run: Run, candidates: int) -> tuple[NDArray[np.float32], int]:
    """Pixels float32 [P, D], the N real images first, and N.

    Raises UserError when the run kept no samples or sampled fewer than c N.
    """
    real = Dataset(run.generation_folder(0) / "selected").all()
    parts = [real]
    for generation in run.measured:
        samples = Dataset(run.generation_folder(generation) / "samples").all()
        if len(samples) < candidates * len(real):
            raise UserError(f"{run.folder}: has {len(samples)} samples per generation, fewer than {candidates} N")
        parts.append(samples[: candidates * len(real)])
    whole = np.concatenate(parts)
    return whole.reshape(len(whole), -1).astype(np.float32), len(real)


def threshold_table(runs: Sequence[Run]) -> str:
    """Entropy minus that of random selection from the same pool, in nats, and share of real images: means over runs."""
    defaults = [_choose(run, 2, "threshold-decay").info["threshold"] for run in runs]
    lines = []
    for strategy in ("random", "greedy", "adaptive-threshold", "entropy-matching"):
        lines.append(_line(strategy, runs, 2, strategy, [{}] * len(runs)))
    settings = [(c, 1.0, 0.95) for c in CANDIDATES]
    settings += [(2, factor, decay) for factor in FACTORS for decay in DECAYS if (factor, decay) != (1.0, 0.95)]
    for c, factor, decay in settings:
        options = [{"threshold": factor * default, "decay": decay} for default in defaults]
        lines.append(_line("threshold-decay", runs, c, "threshold-decay", options, f"{factor:g}", f"{decay:g}"))
    heads = ["strategy", "c", "tau0 / default", "alpha", "entropy above random (nats)", "real images", "uniform draw"]
    return markdown(heads, lines)


def _line(
    name: str, runs: Sequence[Run], c: int, strategy: str, options: Sequence[dict[str, float]], *settings: str
) -> list[str]:
    gains, shares, uniform = [], [], []
    for run, own in zip(runs, options, strict=True):
        rows, n = pool(run, c)
        chosen, drawn = (_choose(run, c, s, **o).ids for s, o in ((strategy, own), ("random", {})))
        gains.append(kl_entropy(rows[chosen]).nats - kl_entropy(rows[drawn]).nats)
        shares.append(float(np.mean(chosen < n)))
        uniform.append(n / len(rows))
    told = settings or ("", "")
    return [name, str(c), *told, mean_and_interval(gains), f"{np.mean(shares):.0%}", f"{np.mean(uniform):.0%}"]


def _choose(run: Run, candidates: int, strategy: str, **options: Any) -> Selection:
    rows, n = pool(run, candidates)
    reference = rows[:n] if strategy == "entropy-matching" else None
    return select(rows, n, strategy, seed=run.seed, reference=reference, **options)
