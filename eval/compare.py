"""Every measure between two or three sets of samples, whichever program made their files.

    folder | sealed shards | .npz | .npy | features  ->  encoder  ->  measure  ->  one row, as JSON or as text

N points, C channels, H height, W width, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import Encoder, load_encoder, resize_of, weights_of
from entroloop.data.runfolder import CONFIG
from entroloop.data.sources.convert import SampleForm, fit, read_samples
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.rows import is_rows, keys_of, opened
from entroloop.data.sources.settings import Settings, find_form
from entroloop.data.store.index import open_set
from entroloop.data.store.manifest import MANIFEST
from entroloop.data.wording import counted
from entroloop.eval.catalogue import space, title
from entroloop.eval.measures.generation import row_of
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.row import finite, flat
from entroloop.eval.measures.sets import Sets
from entroloop.eval.report.statistics import number

Samples = NDArray[Any]
RESIZE = "central square; block means where the factor is whole, else Lanczos"  # `entroloop.data.sources.images.square`
GENERATION = "generation_"  # prefix of the folders of a run's generations
SHOWN = 16  # digits shown of a hash


def compare(
    generated: Path,
    training: Path,
    reference: Path | None = None,
    *,
    keys: Sequence[str] = (),
    encoder: str = "pixel",
    classifier: Path | None = None,
    resolution: int | None = None,
    entropy_size: int | None = None,
    resamples: int = 0,
    seed: int = 0,
    device: str | None = None,
    flip: bool = False,
) -> dict[str, Any]:
    """The measures at the top level (None where undefined), everything else under "context".

    keys       names of the arrays to read, for archives and feature folders with several arrays: one name for all such
               sets, or one per set
    resolution images are first cropped and resized to this many pixels per side, as `import` does; None: unchanged
    resamples  how often half of every set is drawn and measured again; context["resampled"] holds the 2.5 % and 97.5 %
               quantiles of each measure. They show the spread at half the size and are no interval for the full sets.
    device     device of the encoder's network: cpu, cuda, cuda:1, …; None: CUDA if there is any, else the CPU
    flip       whether mirrored copies of training images count as copies too, for models trained with flips
    Raises UserError when a set cannot be read, the sets do not fit together or the device does not exist.
    """
    where = find_device(device)
    paths = {"generated": generated, "training": training, **({"reference": reference} if reference else {})}
    chosen = dict(zip(paths, keys_of(list(paths.values()), keys), strict=True))
    sets = {name: read_set(path, resolution, chosen[name]) for name, path in paths.items()}
    _check_fit(sets, paths)
    shape = sets["generated"].shape[1:]
    if flip and len(shape) == 1:
        raise UserError(f"--flip: {training} holds vectors, which have no mirror images")
    net = load_encoder(encoder, tuple(shape), classifier=classifier, device=where)
    features: dict[str, Any] = {name: _encoded(samples, net, paths[name]) for name, samples in sets.items()}
    if flip:
        features["mirrored"] = _encoded(np.ascontiguousarray(sets["training"][..., ::-1]), net, training)
    found = measure(Sets(**features, entropy_size=entropy_size, seed=seed))
    resize = "none" if len(shape) == 1 else resize_of(encoder, net)
    row = row_of(None, {encoder: found}, {encoder: (net.digest, resize)}, {}, entropy_size)
    one = row.as_dict()["context"]
    behind = one.pop("encoders")[encoder]
    context = {
        "encoder": encoder,
        "encoder_digest": behind.pop("digest"),
        "encoder_weights": weights_of(net),
        "encoder_resize": behind.pop("resize"),
        "sample_shape": list(shape),
        "resolution": resolution,
        "resize": RESIZE if resolution is not None else None,
        **{name: str(path) for name, path in paths.items()},
        "keys": chosen,
        **one,
        **behind,
    }
    if resamples:
        context["resampled"] = _resampled(features, entropy_size, resamples, seed)
    return flat(row.measures[encoder], context)


def _encoded(samples: Samples, net: Encoder, path: Path) -> NDArray[np.float32]:
    try:
        features = net(samples)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not np.isfinite(features).all():
        raise UserError(f"{path}: its features by {net.name} hold values that are not finite (inf or nan)")
    return features


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


def _resampled(features: Mapping[str, Any], entropy_size: int | None, times: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(times):
        rows = {
            name: np.sort(rng.permutation(len(x))[: max(len(x) // 2, 2)])
            for name, x in features.items()
            if name != "mirrored"
        }
        halves = {name: x[rows["training" if name == "mirrored" else name]] for name, x in features.items()}
        half = measure(Sets(**halves, entropy_size=entropy_size, seed=seed))
        for name, value in half.values.items():
            drawn.setdefault(name, []).append(value)
    low, high = (finite({name: float(np.quantile(v, q)) for name, v in drawn.items()}) for q in (0.025, 0.975))
    return {"times": times, "share": 0.5, "ranges": {name: [low[name], high[name]] for name in drawn}}


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
    return f"{samples.shape[2]}x{samples.shape[3]} images with {counted(samples.shape[1], 'channel')}"


def read_set(path: Path, resolution: int | None = None, key: str | None = None) -> Samples:
    """A set of at least two samples: images, uint8 [N, C, H, W], or vectors, float32 [N, D].

    key  name of the array to read from a file or feature folder with several (see `entroloop.data.sources.rows`)

    Raises UserError naming the path when the path is missing, damaged, a run's folder or neither images nor vectors,
    when it holds fewer than two samples or a value that is not finite, and when a resolution is given for vectors.
    """
    samples = _read(path, resolution, key)
    if samples.ndim == 2 and resolution is not None:
        raise UserError(f"--resolution {resolution}: {path} holds vectors, which have none")
    if len(samples) < 2:
        some = "1 sample" if len(samples) else "0 samples"
        raise UserError(f"{path}: holds {some}; measures need at least 2")
    if not samples.size:
        raise UserError(f"{path}: holds {_shape(samples)}")
    if samples.dtype == np.float32 and not np.isfinite(samples).all():
        raise UserError(f"{path}: holds values that are not finite (inf or nan)")
    return samples


def _read(path: Path, resolution: int | None, key: str | None) -> Samples:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if is_rows(path):
        with opened(path, key) as rows:
            rows.check()
            samples = np.array(rows[:], np.uint8 if len(rows.shape) == 3 else np.float32)
        return resized(samples, resolution)
    if (path / MANIFEST).exists():
        return resized(open_set(path).all(), resolution)
    if any(path.glob("shard-*.tar")):
        raise UserError(f"{path}: shards without {MANIFEST}: unfinished, or seal them with `entroloop seal`")
    _check_no_run(path)
    source = open_source(str(path))  # a folder of images, a zip, IDX files: every source that `import` reads
    every = np.arange(len(source.names))
    if not len(every):
        raise UserError(f"{path}: holds no images")
    return read_samples(source, every, find_form(source, every, Settings(resolution=resolution, labels=False), 1))


def _check_no_run(path: Path) -> None:
    """Refuse a run, a generation or a sweep: its folder would be read as one set with the images of all its sets."""
    inside = [path] if path.name.startswith(GENERATION) else []
    inside += [found for pattern in ("", "*/") for found in sorted(path.glob(f"{pattern}{GENERATION}*"))]
    samples = [generation / "samples" for generation in inside]
    sealed = [folder for folder in samples if (folder / MANIFEST).exists()]
    if sealed or (inside and (path / CONFIG).exists()):
        raise UserError(
            f"{path}: holds the sets of a run, real, generated and selected: give one of them, "
            f"such as {(sealed or samples)[-1]}"
        )


def resized(samples: Samples, resolution: int | None) -> Samples:
    """uint8 [N, C, H, W] -> uint8 [N, C, R, R], as `import` resizes. Vectors, and any set if R is None: unchanged."""
    if resolution is None or samples.ndim != 4 or samples.shape[2:] == (resolution, resolution):
        return samples
    form = SampleForm((samples.shape[1], resolution, resolution), "npy", labelled=False)
    return np.stack([fit(image, form) for image in samples])


def as_json(row: dict[str, Any]) -> str:
    """One line of JSON."""
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
    lines.append(_in_one_line(context))
    if context["n_reference"]:
        lines.append(
            "Distances, spread gap, precision, recall, density and coverage compare with the reference set; "
            "the scores of memorization and generalization compare with the training set."
        )
    else:
        lines.append("All measures compare with the training set.")
    if context["mirrored_copies_count"]:
        lines.append("Mirrored copies of training images count as copies.")
    if context["resize"]:
        lines.append(f"Resized to {context['resolution']} pixels per side: {context['resize']}.")
    return "\n".join(lines)


def _in_one_line(context: dict[str, Any]) -> str:
    """All that the numbers depend on: sizes, encoder, weights, resize, k and seed. Hashes are cut to SHOWN digits."""
    sizes = [f"{context[f'n_{name}']} {name}" for name in ("generated", "training", "reference")]
    hashes = [f"{name} SHA-256 {sha256[:SHOWN]}…" for name, sha256 in (context["encoder_weights"] or {}).items()]
    none = "no weights" if context["encoder_weights"] is not None else "weights in the digest only"
    where = space(context["encoder"], len(context["sample_shape"]) == 1)
    ks = {**context["k"], "entropy": context["entropy_k"]}
    parts = [
        ", ".join(sizes if context["n_reference"] else sizes[:2]),
        f"{where} features, digest {context['encoder_digest'][:SHOWN]}…",
        f"weights {', '.join(hashes)}" if hashes else none,
        f"resize {context['encoder_resize']}",
        f"k {', '.join(f'{name} {k}' for name, k in ks.items())}",
        f"seed {context['seed']}",
    ]
    return "; ".join(parts)
