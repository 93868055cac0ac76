"""Images for the report: samples of each generation, and generated images beside their nearest training image.

    sealed shards of a run  ->  Strip (PNG bytes and an alternative text)

n images, C channels, H height, W width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import open_set
from entroloop.data.store.manifest import is_sealed, removed
from entroloop.data.store.shards import REAL
from entroloop.eval.report.arms import Arm
from entroloop.eval.report.runs import Run
from entroloop.selection import nearest

BUDGET = 600_000  # bytes of sample images in one report, before base64
CHOICE_BUDGET = 200_000  # bytes of the images of selected and rejected candidates in one report, before base64
PAIR_BUDGET = 400_000  # bytes of the pairs' images in one report, before base64
COMPARED = 256  # generated images whose nearest training image is searched
PAIRS = 12


@dataclass(frozen=True)
class Strip:
    """A picture and its alternative text; `width` and `height` in the picture's own pixels, which a page scales up."""

    png: bytes
    alt: str
    width: int
    height: int


def sealed_set(run: Run, generation: int, folder: str) -> Dataset | None:
    """A sealed set of images or vectors of a run; None if it does not exist (yet)."""
    path = run.generation_folder(generation) / folder
    return open_set(path) if is_sealed(path) else None


def dataset(run: Run, generation: int, folder: str) -> Dataset | None:
    """A sealed set of images of a run; None if the set does not exist (yet) or holds vectors."""
    found = sealed_set(run, generation, folder)
    return None if found is None or len(found.shape) != 3 else found


def available(one: Dataset) -> int:
    """Number of samples on disk before the first removed shard; retention never removes the first shard."""
    gone = removed(one.folder)
    there = [name not in gone for name in one.shard_names]
    return int(one.starts[there.index(False) if False in there else len(there)])


def common_seed(groups: Sequence[Arm]) -> int | None:
    """The smallest seed that every arm has run, else None. Samples of equal seed and number start from equal noise."""
    seeds = [{run.seed for run in arm.runs} for arm in groups]
    shared = set.intersection(*seeds) if seeds else set()
    return min(shared) if shared else None


def shown_runs(groups: Sequence[Arm]) -> dict[str, Run]:
    """Label of each arm -> the run whose images are shown: equal seeds where possible."""
    seed = common_seed(groups)
    return {arm.label: next((run for run in arm.runs if run.seed == seed), arm.runs[0]) for arm in groups}


def sample_strips(runs: dict[str, Run], generations: Sequence[int]) -> dict[int, dict[str, Strip]]:
    """generation -> arm -> its samples 0, 1, 2, …: the same seeds in every cell of the grid.

    REAL -> the first arm -> the first images of generation 0's training set, for comparison.
    """
    sets = {(g, label): dataset(run, g, "samples") for g in generations for label, run in runs.items()}
    sets |= {(REAL, label): dataset(run, 0, "selected") for label, run in list(runs.items())[:1]}
    found = {key: value for key, value in sets.items() if value is not None}
    out: dict[int, dict[str, Strip]] = {}
    if not found:
        return out
    pixels = max(math.prod(one.shape) for one in found.values())
    columns = int(np.clip(BUDGET / (len(found) * pixels), 4, 10))
    rows = 2 if columns == 10 else 1
    for (generation, label), one in found.items():
        images = one.take(np.arange(min(columns * rows, available(one))))
        which = f"Samples 0 to {len(images) - 1} of generation {generation}, {label}"
        alt = f"{len(images)} real images of the first training set" if generation == REAL else which
        out.setdefault(generation, {})[label] = strip(images, columns, alt)
    return out


def candidates(run: Run, generation: int) -> tuple[Dataset, NDArray[np.bool_]] | None:
    """The samples of the generation before, and for each candidate among those on disk whether it was selected.

    None before both sets are sealed, and where no candidate or every candidate was selected.
    """
    samples, chosen = sealed_set(run, generation - 1, "samples"), sealed_set(run, generation, "selected")
    if samples is None or chosen is None:
        return None
    count = int(run.config.get("loop.candidates", 1)) * int(run.config.get("data.size", len(chosen)))
    origin = chosen.provenance
    taken = np.isin(np.arange(min(count, available(samples))), origin.index[origin.generation == generation - 1])
    return None if taken.all() or not taken.any() else (samples, taken)


def choices(runs: dict[str, Run]) -> dict[int, dict[str, tuple[Strip, Strip]]]:
    """generation -> arm -> the first selected and the first rejected candidates that the generation before has made.

    Generations are left out, evenly, where all of them would exceed the page's budget. Arms that reject nothing have no
    entry.
    """
    planned = range(1, max((run.planned for run in runs.values()), default=0))
    there = [
        g
        for g in planned
        if any(dataset(run, g, "selected") and dataset(run, g - 1, "samples") for run in runs.values())
    ]
    if not there:
        return {}
    pixels = max(math.prod(one.shape) for run in runs.values() if (one := dataset(run, there[0] - 1, "samples")))
    most = max(1, int(CHOICE_BUDGET / (len(runs) * 2 * 4 * pixels)))
    spread = np.linspace(len(there) - 1, 0, min(most, len(there))).round().astype(int)  # the last one first
    columns = int(np.clip(CHOICE_BUDGET / (len(spread) * len(runs) * 2 * pixels), 4, 10))
    out: dict[int, dict[str, tuple[Strip, Strip]]] = {}
    for generation in sorted(there[i] for i in set(spread.tolist())):
        for label, run in runs.items():
            if (found := candidates(run, generation)) is None:
                continue
            made, taken = found
            words = (f"{name} candidates of generation {generation}, {label}" for name in ("Selected", "Rejected"))
            both = (made.take(np.flatnonzero(which)[:columns]) for which in (taken, ~taken))
            first, second = (strip(images, columns, alt) for images, alt in zip(both, words, strict=True))
            out.setdefault(generation, {})[label] = (first, second)
    return out


def nearest_pairs(run: Run, runs: int = 1) -> tuple[int, list[tuple[float, Strip]]] | None:
    """The last generation with samples, and pairs (generated, nearest training image) from nearest to furthest.

    Distances are in pixel units (0..255 scale). The pairs are spread evenly over the first COMPARED samples, sorted by
    distance. `runs` is the number of runs that share the page's budget. None without samples and a training set.
    """
    for generation in reversed(range(run.planned)):
        samples, training = dataset(run, generation, "samples"), dataset(run, generation, "selected")
        if samples is not None and training is not None:
            break
    else:
        return None
    generated = samples.take(np.arange(min(COMPARED, available(samples))))
    real = training.all()
    distances, ids = nearest(_rows(generated), _rows(real), 1)
    order = np.argsort(distances[:, 0], kind="stable")
    count = int(np.clip(PAIR_BUDGET / (runs * 2 * math.prod(samples.shape)), 4, PAIRS))
    picked = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    pairs = []
    for i in picked:
        both = np.stack([generated[i], real[ids[i, 0]]])
        alt = f"Sample {i} and training image {ids[i, 0]}, {distances[i, 0]:.0f} apart"
        pairs.append((float(distances[i, 0]), strip(both, 1, alt)))
    return generation, pairs


def _rows(images: NDArray[np.generic]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32)


def strip(images: NDArray[np.generic], columns: int, alt: str) -> Strip:
    """uint8 [n, C, H, W] -> one PNG, `columns` images wide, a white line between images."""
    n, c, h, w = images.shape
    gap = 1
    rows = math.ceil(n / columns)
    columns = min(columns, n)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = image.transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if c == 1 else sheet).save(out, "PNG", optimize=True)
    return Strip(out.getvalue(), alt, sheet.shape[1], sheet.shape[0])
