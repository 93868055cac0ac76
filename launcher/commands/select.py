"""`entroloop select` and `entroloop entropy`: on anybody's vectors, in one process or under torchrun.

    FEATURES (.npy, .npz, or a sealed feature folder) -> memory map -> this rank's rows -> selection -> files, JSON

Shapes: N rows, D features, M chosen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.selection.catalogue import DISTANCES, STRATEGIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from entroloop.data.world import World
    from entroloop.selection import Selection

_ENTROPY_ROWS = 16_384  # at most this many rows tell the entropy before and after choosing

Features = Annotated[Path, typer.Argument(help="A .npy or .npz file [N, D], or a sealed feature folder.")]
Key = Annotated[str | None, typer.Option(help="Which array of an .npz file (default: the only one, or `features`).")]
EncoderName = Annotated[str | None, typer.Option("--encoder", help="Which encoder of a feature folder.")]
MetricName = Annotated[str, typer.Option("--metric", help=f"{', '.join(DISTANCES.built_in)}, or module:attribute.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def select_command(
    features: Features,
    size: Annotated[int, typer.Option(help="How many rows to choose.")],
    out: Annotated[Path, typer.Option(help="Where the ids go, .npy; a .json beside it says what was done.")],
    strategy: Annotated[str, typer.Option(help=f"{', '.join(STRATEGIES.built_in)}, or module:attribute.")] = "greedy",
    seed: Annotated[int, typer.Option(help="Where all randomness comes from.")] = 0,
    metric: MetricName = "euclidean",
    option: Annotated[list[str] | None, typer.Option(help="key=value of the strategy; may be repeated.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Real features, for matching strategies.")] = None,
    labels: Annotated[Path | None, typer.Option(help="One integer a row, .npy.")] = None,
    generations: Annotated[Path | None, typer.Option(help="One integer a row, .npy.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Choose within each class of the labels.")] = False,
    trim: Annotated[float, typer.Option(help="Share of outliers dropped before choosing.")] = 0.0,
    trim_k: Annotated[int, typer.Option(help="Outliers are far from this neighbour.")] = 1,
    key: Key = None,
    encoder: EncoderName = None,
    as_json: Json = False,
) -> None:
    """Choose the most informative rows of any set of vectors."""
    from entroloop.data.progress import Progress
    from entroloop.launcher.process import world_from_environment
    from entroloop.selection import select
    from entroloop.selection.choose import check_options

    options = parse_options(option or [])
    check_options(strategy, options)
    if out.suffix != ".npy":
        raise UserError(f"--out: must end in .npy, is {out}")
    world = world_from_environment()
    with opened(features, key, encoder) as (array, about):
        mine = _share(len(array), world)
        extra: dict[str, Any] = {}
        for name, path in (("labels", labels), ("generations", generations)):
            if path is not None:
                extra[name] = _numbers(path, len(array), name)[mine]
        if reference is not None:
            with opened(reference, key, encoder) as (real, about_real):
                extra["reference"] = real[_share(len(real), world)]
            about_real = {"reference": about_real}
        else:
            about_real = {}
        with Progress("select", size, "row", show=world.is_main) as progress:
            chosen = select(
                array[mine],
                size,
                strategy,
                seed=seed,
                world=world,
                metric=metric,
                trim=trim,
                trim_k=trim_k,
                per_class=per_class,
                on_progress=progress.advance,
                **extra,
                **options,
            )
        spread = _entropies(array, chosen, seed, metric, world)
    done = {
        "features": about,
        **about_real,
        "strategy": strategy,
        "options": options,
        "metric": metric,
        "seed": seed,
        "size": size,
        "per_class": per_class,
        "trim": trim,
        "trim_k": trim_k,
        "radii": _summary(chosen),
        "entropy": spread,
        "info": chosen.info,
        "ids": {"file": out.name},
    }
    if world.is_main:
        _write(out, chosen, done)
        typer.echo(json.dumps(done) if as_json else f"{out}: {size} of {len(array)} rows, by {strategy}")
    world.barrier()


def entropy_command(
    features: Features,
    k: Annotated[int, typer.Option(help="Distances go to the k-th nearest other row.")] = 1,
    metric: MetricName = "euclidean",
    key: Key = None,
    encoder: EncoderName = None,
    as_json: Json = False,
) -> None:
    """Kozachenko-Leonenko entropy of a set of vectors, in nats; compare it at equal n only."""
    from entroloop.launcher.process import world_from_environment
    from entroloop.selection import kl_entropy

    world = world_from_environment()
    with opened(features, key, encoder) as (array, _):
        entropy = kl_entropy(array[_share(len(array), world)], k, metric=metric, world=world)
    if world.is_main:
        numbers = {name: getattr(entropy, name) for name in ("nats", "n", "d", "k", "floored")}
        if as_json:
            typer.echo(json.dumps(numbers))
        else:
            typer.echo(f"{entropy.nats:.6g} nats (n {entropy.n}, d {entropy.d}, k {k}, {entropy.floored} at the floor)")


def parse_options(pairs: list[str]) -> dict[str, float | int | str | bool]:
    """`key=value` texts; values become true/false, an integer or a number where they read as one."""
    out: dict[str, float | int | str | bool] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise UserError(f"--option: must be key=value, is {pair!r}")
        out[name.replace("-", "_")] = _value(text)
    return out


def _value(text: str) -> float | int | str | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@contextmanager
def opened(
    path: Path, key: str | None = None, encoder: str | None = None
) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """The features of a file or folder, memory-mapped where that is possible, and what to record of them.

    Raises UserError where nothing usable is there, and at the end if the file changed while it was used.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    source = path / "manifest.json" if path.is_dir() else path
    if not source.exists():
        raise UserError(f"{path}: not a sealed feature folder (no manifest.json); give a .npy or .npz file or seal it")
    before = _stamp(source)
    if path.is_dir():
        from entroloop.data.features.blocks import load_features

        array: NDArray[Any] = load_features(path, encoder)
    else:
        array = _load_npz(path, key) if path.suffix == ".npz" else _load_npy(path)
    if array.ndim != 2:
        raise UserError(f"{path}: must hold an array [N, D], holds one of shape {list(array.shape)}")
    about = {
        "file": path.name,
        "sha256": files.sha256(source),
        "shape": list(array.shape),
        "dtype": str(array.dtype),
    }
    yield array, about
    if _stamp(source) != before:
        raise UserError(f"{path}: changed while it was read; run the command again when it is complete")


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _load_npy(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a complete .npy file ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: not a .npy file; an archive must be named .npz")
    return array


def _load_npz(path: Path, key: str | None) -> NDArray[Any]:
    """One array of an archive; stored ones are mapped in place, compressed ones are read."""
    import zipfile

    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key is None:
                key = names[0] if len(names) == 1 else "features"
            if key not in names:
                raise UserError(f"{path}: has no array {key!r}; choose one with --key: {', '.join(names)}")
            entry = archive.getinfo(f"{key}.npy")
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(member)
                header = member.tell()
            if entry.compress_type == zipfile.ZIP_STORED and not dtype.hasobject:
                with path.open("rb") as file:
                    file.seek(entry.header_offset + 26)
                    name_length, extra_length = np.frombuffer(file.read(4), "<u2")
                offset = entry.header_offset + 30 + int(name_length) + int(extra_length) + header
                return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
        with np.load(path, allow_pickle=False) as arrays:
            loaded: NDArray[Any] = arrays[key]
            return loaded
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a complete .npz file ({error})") from error


def _numbers(path: Path, n: int, name: str) -> NDArray[Any]:
    if not path.exists():
        raise UserError(f"--{name}: {path}: no such file")
    array = _load_npy(path)
    if array.shape != (n,):
        raise UserError(f"--{name}: {path}: must hold {n} integers, one a row, has shape {list(array.shape)}")
    return array


def _share(n: int, world: World) -> slice:
    return slice(n * world.rank // world.size, n * (world.rank + 1) // world.size)


def _summary(chosen: Selection) -> dict[str, float]:
    import numpy as np

    finite = chosen.radii[np.isfinite(chosen.radii)]
    if len(finite) == 0:
        return {}
    middle = float(np.median(finite))
    return {"min": float(finite.min()), "median": middle, "mean": float(finite.mean()), "last": float(finite[-1])}


def _entropies(array: NDArray[Any], chosen: Selection, seed: int, metric: str, world: World) -> dict[str, Any]:
    """Entropy in nats of as many random rows of all, and of the chosen, at equal n."""
    import numpy as np

    from entroloop.selection import kl_entropy

    n = min(len(chosen.ids), _ENTROPY_ROWS)
    if n < 2:
        return {}
    draw = np.random.default_rng([seed, *b"entropy"])
    ids = {"before": draw.permutation(len(array))[:n], "after": chosen.ids[draw.permutation(len(chosen.ids))[:n]]}
    mine = _share(n, world)
    out: dict[str, Any] = {"n": n}
    for name, rows in ids.items():
        result = kl_entropy(array[rows[mine]], metric=metric, world=world)
        out[name] = {"nats": result.nats, "floored": result.floored}
    return out


def _write(out: Path, chosen: Selection, done: dict[str, Any]) -> None:
    import numpy as np

    files.replace(out, lambda file: np.save(file, chosen.ids, allow_pickle=False))
    done["ids"]["sha256"] = files.sha256(out)
    files.replace(out.with_suffix(".json"), lambda file: file.write(files.json_bytes(done)))
