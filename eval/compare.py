"""Every measure between two or three sets of samples, whichever program made their files.

    folder | sealed shards | .npz | .npy | features  ->  encoder  ->  measure  ->  one row for each generated set

The ranks of a World share the samples. Each encodes its share and holds these features, in a mapped file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import Encoder, load_encoder, resize_of, weights_of
from entroloop.data.progress import Progress
from entroloop.data.sources.row_files import keys_of
from entroloop.data.world import World
from entroloop.eval.measures import intervals
from entroloop.eval.measures.generation import row_of
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.row import finite, flat
from entroloop.eval.measures.sets import Sets
from entroloop.eval.samples import SampleSet, features_of, opened_set

RESIZE = "central square; block means where the factor is whole, else Lanczos"  # `entroloop.data.sources.images.square`


def compare(generated: Path, training: Path, reference: Path | None = None, **options: Any) -> dict[str, Any]:
    """The row of one generated set. The options are those of `compare_sets`."""
    return compare_sets([generated], training, reference, **options)[str(generated)]


def compare_sets(
    generated: Sequence[Path],
    training: Path,
    reference: Path | None = None,
    *,
    keys: Sequence[str] = (),
    encoder: str = "pixel",
    classifier: Path | None = None,
    resolution: int | None = None,
    entropy_size: int | None = None,
    resamples: int = 0,
    bootstrap: int = 0,
    seed: int = 0,
    device: str | None = None,
    flip: bool = False,
    world: World | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Path -> row of each generated set: the measures at the top level (None where undefined), all else in "context".

    keys       names of the arrays to read, for archives and feature folders with several arrays: one name for all such
               sets, or one per set: the generated ones, the training set, the reference
    resolution images are first cropped and resized to this many pixels per side, as `import` does; None: unchanged
    resamples  how often half of every set is drawn and measured again; context["resampled"] holds the 2.5 % and 97.5 %
               quantiles of each measure. They show the spread at half the size and are no interval for the full sets.
    bootstrap  number of draws for the 95 % intervals in context["bootstrap"] (see `entroloop.eval.measures.intervals`)
    device     of the encoder and of distances: cpu, cuda, cuda:1, …; None: CUDA if there is any, else the CPU
    flip       whether mirrored copies of training images count as copies too, for models trained with flips
    world      the ranks that share the work, on their devices; None: this process alone, on `device`
    progress   whether to show progress

    Every rank returns the same rows. Raises UserError when a set cannot be read or is given twice, when the sets do not
    fit together or are too small for intervals, and when the device does not exist.
    """
    world = World(device=find_device(device)) if world is None else world
    real = {"training": training, **({"reference": reference} if reference else {})}
    if twice := [path for path in generated if list(generated).count(path) > 1]:
        raise UserError(f"{twice[0]}: is given twice: give each generated set once")
    paths = [*generated, *real.values()]
    chosen = keys_of(paths, keys)
    rows = {}
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(opened_set(p, resolution, key, world)) for p, key in zip(paths, chosen, strict=True)
        ]
        _check_fit(opened, bootstrap)
        shape = opened[0].shape
        if flip and len(shape) == 1:
            raise UserError(f"--flip: {training} holds vectors, which have no mirror images")
        net = load_encoder(encoder, shape, classifier=classifier, device=world.device)

        show = progress and world.is_main

        def encoded(of: SampleSet, mirrored: bool = False) -> NDArray[np.float32]:
            mine = world.share(of.count)
            return world.agree(lambda: features_of(of, net, mine, mirrored=mirrored, show=show))

        first = len(generated)
        sets: Sets | None = None
        for number, path in enumerate(generated):
            features = encoded(opened[number])
            if sets is None:
                held = {name: encoded(of) for name, of in zip(real, opened[first:], strict=True)}
                if flip:
                    held["mirrored"] = encoded(opened[first], mirrored=True)
                sets = Sets(features, **held, world=world, entropy_size=entropy_size, seed=seed)
            else:
                sets = sets.against(features)
            about = {
                "encoder": encoder,
                "sample_shape": list(shape),
                "resolution": resolution,
                "resize": RESIZE if resolution is not None else None,
                "generated": str(path),
                **{name: str(where) for name, where in real.items()},
                "keys": dict(zip(("generated", *real), (chosen[number], *chosen[first:]), strict=True)),
            }
            row, values = _row(sets, net, about)
            row["context"] |= _spreads(sets, values, resamples, bootstrap, show)
            rows[str(path)] = row
    return rows


def _row(sets: Sets, net: Encoder, about: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The row of one generated set, and its values, nan where undefined."""
    name = about["encoder"]
    found = measure(sets)
    resize = "none" if len(about["sample_shape"]) == 1 else resize_of(name, net)
    row = row_of(None, {name: found}, {name: (net.digest, resize)}, {}, sets.entropy_size)
    one = row.as_dict()["context"]
    behind = one.pop("encoders")[name]
    context = {
        "encoder": name,
        "encoder_digest": behind.pop("digest"),
        "encoder_weights": weights_of(net),
        "encoder_resize": behind.pop("resize"),
        **about,
        **one,
        **behind,
    }
    return flat(row.measures[name], context), found.values


def _spreads(
    sets: Sets, values: Mapping[str, float], resamples: int, bootstrap: int, show: bool
) -> dict[str, dict[str, Any]]:
    """The ranges and intervals of the measures that were asked for."""
    found: dict[str, dict[str, Any]] = {}
    if resamples:
        ranges = _ends(intervals.ranges(sets, resamples, sets.seed))
        found["resampled"] = {"times": resamples, "share": 0.5, "ranges": ranges}
    if bootstrap:
        with Progress("bootstrap", bootstrap, "draw", show=show) as bar:
            ends = _ends(intervals.intervals(sets, values, bootstrap, sets.seed, bar.advance))
        found["bootstrap"] = {"times": bootstrap, "level": 0.95, "intervals": ends}
    return found


def _ends(found: Mapping[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    """The ends of each range, None in place of NaN and infinity."""
    return {name: list(finite({"low": low, "high": high}).values()) for name, (low, high) in found.items()}


def find_device(name: str | None) -> torch.device:
    """The device of that name; None: CUDA if there is any, else the CPU. Raises UserError when it does not exist."""
    gpus = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not (device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < gpus)):
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(gpus))])
        raise UserError(f"--device {name}: no such device here; there is {here}")
    return device


def _check_fit(sets: Sequence[SampleSet], bootstrap: int) -> None:
    for one in sets:
        if one.shape != sets[0].shape:
            raise UserError(
                f"{one.path}: holds {one.described}, but {sets[0].path} holds {sets[0].described}: "
                "measures need equal sizes and channels"
            )
        if bootstrap and one.count < intervals.LEAST:
            raise UserError(
                f"--bootstrap: {one.path} holds {one.count} samples: intervals need at least {intervals.LEAST}"
            )
