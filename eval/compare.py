"""Every measure between any two or three sets of files, whoever made them.

    folder | sealed shards | .npz | .npy  ->  encoder  ->  measure  ->  one row, as JSON or as text

N points, C channels, H height, W width, D features.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data.encoders import load_encoder
from entroloop.data.errors import UserError
from entroloop.data.images import Channels, convert, from_array
from entroloop.data.indexed import open_set
from entroloop.data.layout import Settings, find_layout
from entroloop.data.manifest import MANIFEST
from entroloop.data.recognise import open_source
from entroloop.eval.analysis import number
from entroloop.eval.catalogue import title
from entroloop.eval.measures import measure

Samples = NDArray[Any]
RESIZE = "central square; block means where the factor is whole, else Lanczos"  # `entroloop.data.images.square`


def compare(
    generated: Path,
    training: Path,
    reference: Path | None = None,
    *,
    encoder: str = "pixel",
    classifier: Path | None = None,
    resolution: int | None = None,
    entropy_size: int | None = None,
    resamples: int = 0,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """The measures at the top level (None where undefined), everything else under "context".

    resolution images are cropped and resized to this many pixels a side first, as `import` does; None: as they are
    resamples  times that half of every set is drawn and measured again: 2.5 % and 97.5 % quantiles of each measure
               under context["resampled"]. They show the spread at half the size, not an interval of the full number.
    device     of the encoder's network: cpu, cuda, cuda:1, …; None: CUDA if there is any, else the CPU
    Raises UserError when a set cannot be read, the sets do not fit together or there is no such device.
    """
    where = find_device(device)
    paths = {"generated": generated, "training": training, **({"reference": reference} if reference else {})}
    sets = {name: read_set(path, resolution) for name, path in paths.items()}
    _check_fit(sets, paths)
    shape = sets["generated"].shape[1:]
    net = load_encoder(encoder, tuple(shape), classifier=classifier, device=where)
    features = {name: net(samples) for name, samples in sets.items()}
    found = measure(
        features["generated"], features["training"], features.get("reference"), entropy_size=entropy_size, seed=seed
    )
    context = {
        "encoder": net.name,
        "encoder_digest": net.digest,
        "sample_shape": list(shape),
        "resolution": resolution,
        "resize": RESIZE if resolution is not None and len(shape) == 3 else None,
        **{name: str(path) for name, path in paths.items()},
        **found.context,
    }
    if resamples:
        context["resampled"] = _resampled(features, entropy_size, resamples, seed)
    return {**{name: _finite(value) for name, value in found.values.items()}, "context": context}


def find_device(name: str | None) -> torch.device:
    """Raises UserError where this machine has no such device."""
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


def _resampled(
    features: dict[str, NDArray[np.float32]], entropy_size: int | None, times: int, seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(times):
        halves = {name: x[np.sort(rng.permutation(len(x))[: max(len(x) // 2, 2)])] for name, x in features.items()}
        half = measure(
            halves["generated"], halves["training"], halves.get("reference"), entropy_size=entropy_size, seed=seed
        )
        for name, value in half.values.items():
            drawn.setdefault(name, []).append(value)
    ranges = {name: [_finite(float(q)) for q in np.quantile(v, [0.025, 0.975])] for name, v in drawn.items()}
    return {"times": times, "share": 0.5, "ranges": ranges}


def _check_fit(sets: dict[str, Samples], paths: dict[str, Path]) -> None:
    first = sets["generated"]
    for name, samples in sets.items():
        if samples.shape[1:] != first.shape[1:]:
            raise UserError(
                f"{paths[name]}: holds {_shape(samples)}, but {paths['generated']} holds {_shape(first)}: "
                "measures need equal sizes and channels"
            )


def _shape(samples: Samples) -> str:
    if samples.ndim == 2:
        return f"vectors of {samples.shape[1]} numbers"
    return f"{samples.shape[2]}x{samples.shape[3]} images with {samples.shape[1]} channel(s)"


def read_set(path: Path, resolution: int | None = None) -> Samples:
    """A set of images, uint8 [N, C, H, W], or vectors, float32 [N, D].

    Raises UserError naming the path when it is missing, empty, damaged or neither of the two.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix in (".npy", ".npz") and path.is_file():
        return resized(as_samples(_load_array(path), path), resolution)
    if (path / MANIFEST).exists():
        return resized(open_set(path).all(), resolution)
    if any(path.glob("shard-*.tar")):
        raise UserError(f"{path}: shards without {MANIFEST}: unfinished, or seal them with `entroloop seal`")
    return _read_source(path, resolution)


def _load_array(path: Path) -> Samples:
    try:
        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return np.asarray(loaded)
        arrays = [key for key in ("arr_0", "images", "samples", "features", "x", "x_train") if key in loaded]
        keys = arrays or [key for key in loaded if loaded[key].ndim in (2, 3, 4)]
        if not keys:
            raise UserError(f"{path}: holds no array of images or vectors (has: {', '.join(loaded) or 'nothing'})")
        return np.asarray(loaded[keys[0]])
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged or not a numpy file ({str(error).splitlines()[0]})") from error
    except Exception as error:  # zipfile.BadZipFile, zlib.error, …: numpy lets them through
        raise UserError(f"{path}: damaged or not a numpy file ({error})") from error


def as_samples(array: Samples, path: Path) -> Samples:
    """[N, D] numbers -> float32 vectors; uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] -> uint8 [N, C, H, W]."""
    if array.ndim == 2 and array.dtype.kind in "fiu":
        return array.astype(np.float32)
    if array.ndim in (3, 4) and array.dtype == np.uint8:
        if array.ndim == 3:
            return array[:, None]
        if array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
            return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        if array.shape[1] in (1, 3):
            return array
    raise UserError(
        f"{path}: holds {array.dtype} of shape {list(array.shape)}; "
        "expected vectors [N, D] or uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W]"
    )


def _read_source(path: Path, resolution: int | None) -> Samples:
    """A folder of images, a zip, IDX files: whatever `import` reads."""
    opened = open_source(str(path))
    rows = np.arange(len(opened.names))
    if not len(rows):
        raise UserError(f"{path}: holds no images")
    layout = find_layout(opened, rows, Settings(resolution=resolution, labels=False), 1)
    out = np.empty((len(rows), *layout.shape), np.uint8 if len(layout.shape) == 3 else np.float32)
    for row, sample in zip(rows, opened.read(rows), strict=True):
        with opened.naming(int(row)):
            out[row] = (
                sample if isinstance(sample, np.ndarray) else convert(sample, _channels(layout.shape), resolution)
            )
    return out


def resized(samples: Samples, resolution: int | None) -> Samples:
    """uint8 [N, C, H, W] -> uint8 [N, C, R, R], as `import` resizes; vectors and R = None: as they are."""
    if resolution is None or samples.ndim != 4 or samples.shape[2:] == (resolution, resolution):
        return samples
    return np.stack([convert(from_array(image), _channels(image.shape), resolution) for image in samples])


def _channels(shape: tuple[int, ...]) -> Channels:
    return 1 if shape[0] == 1 else 3


def as_json(row: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(row, allow_nan=False, ensure_ascii=False)


def as_text(row: dict[str, Any]) -> str:
    """An aligned table for people."""
    context = row["context"]
    ranges = context.get("resampled", {}).get("ranges", {})
    names = [name for name in row if name != "context"]
    titles = {name: title(name, context["encoder"]) for name in names}
    width = max(map(len, titles.values()))
    lines = []
    for name in names:
        low, high = ranges.get(name, (None, None))
        spread = f"   {number(low)} … {number(high)}" if name in ranges else ""
        lines.append(f"{titles[name]:<{width}}  {number(row[name]):>10}{spread}")
    sizes = [f"{context['n_generated']} generated", f"{context['n_training']} training"]
    if context["n_reference"]:
        sizes.append(f"{context['n_reference']} reference")
    lines.append(f"{', '.join(sizes)}; {context['encoder']} features")
    if context["n_reference"]:
        lines.append(
            "Distances, precision, recall, density and coverage compare with the reference set, "
            "the scores of memorization and generalization with the training set."
        )
    else:
        lines.append("Everything compares with the training set.")
    if context["resize"]:
        lines.append(f"Resized to {context['resolution']} pixels a side: {context['resize']}.")
    return "\n".join(lines)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
