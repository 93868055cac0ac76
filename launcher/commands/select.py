"""`entroloop select`: the most informative rows of any set of vectors, in one process or under torchrun.

    FEATURES (.npy, .npz, or a sealed feature folder) -> Rows -> this rank's rows -> selection -> files, JSON

Shapes: N rows, D features, M chosen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from entroloop.data import files
from entroloop.data.errors import UserError, naming
from entroloop.data.wording import counted
from entroloop.launcher.commands.common import WHICH, As, Features, Json, MetricName, Quiet, Verbose, usable
from entroloop.selection.catalogue import STRATEGIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from entroloop.data.sources.rows import Rows
    from entroloop.data.take import Form, Taking
    from entroloop.data.world import World
    from entroloop.selection import Selection

_ENTROPY_ROWS = 16_384  # at most this many rows are used for the entropy before and after choosing


def select_command(
    features: Features,
    size: Annotated[int, typer.Option(help="Number of rows to choose.")],
    out: Annotated[Path, typer.Option(help="File for the ids, .npy; a .json beside it describes the choice.")],
    strategy: Annotated[str, typer.Option(help=f"{', '.join(STRATEGIES.built_in)}, or module:attribute.")] = "greedy",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    metric: MetricName = "euclidean",
    option: Annotated[list[str] | None, typer.Option(help="A strategy option, key=value; may be repeated.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Real features, for matching strategies.")] = None,
    reference_labels: Annotated[
        Path | None,
        typer.Option(help="Classes of the reference, .npy, for --per-class: each matches its own."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Classes: one integer per row, .npy.")] = None,
    generations: Annotated[Path | None, typer.Option(help="Generations: one integer per row, .npy.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Choose within each class of the labels.")] = False,
    trim: Annotated[float, typer.Option(help="Share of rows dropped as outliers before choosing.")] = 0.0,
    trim_k: Annotated[int, typer.Option(help="k: outliers are far from their k-th nearest neighbour.")] = 1,
    key: Annotated[
        list[str] | None, typer.Option("--key", "--encoder", help=f"{WHICH}. Give it once more for the reference.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --write: the samples whose features these are; any source of import.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="With --source: write the chosen samples here, as take does.")
    ] = None,
    form: As = "shards",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose the most informative rows of any set of vectors."""
    from entroloop.data.progress import Progress
    from entroloop.data.sources.row_files import keys_of, opened
    from entroloop.eval.measures.row import flat
    from entroloop.launcher.process import world_from_environment
    from entroloop.selection import select
    from entroloop.selection.options import check_options

    options = parse_options(option or [])
    check_options(strategy, options)
    if out.suffix != ".npy":
        raise UserError(f"--out: must end in .npy, is {out}")
    files.check_place(out)
    if reference_labels is not None and reference is None:
        raise UserError("--reference-labels: give --reference, whose classes these are")
    world = world_from_environment()
    keys = keys_of([features, *([reference] if reference else [])], key or [])
    with opened(features, keys[0]) as rows:
        taking = world.agree(lambda: _taking(rows, source, write, form) if world.is_main else None)
        mine, sets = usable(rows, world), {"features": rows.about()}
        more: dict[str, Any] = {
            "labels": _integers(labels, rows, world),
            "generations": _integers(generations, rows, world),
        }
        if reference is not None:
            with opened(reference, keys[1]) as real:
                _check_alike(real, rows)
                more |= {"reference": usable(real, world), "reference_labels": _integers(reference_labels, real, world)}
                sets["reference"] = real.about()
        settings: dict[str, Any] = {
            "metric": metric,
            "seed": seed,
            "per_class": per_class,
            "trim": trim,
            "trim_k": trim_k,
        }
        given: dict[str, object] = {name: f"--{name.replace('_', '-')}" for name in ("size", *settings)}
        given |= {"features": rows.where, "queries": rows.where, "reference": reference or "--reference"}
        given |= {"labels": labels or "--labels", "generations": generations or "--generations"}
        with naming(**given), Progress("select", size, "row", show=world.is_main) as progress:
            chosen = select(
                mine, size, strategy, world=world, on_progress=progress.advance, **settings, **more, **options
            )
        spread, behind = _entropies(rows, chosen, seed, metric, world)
    made_by = {"strategy": strategy, "options": options, "size": size, **settings}
    context = {**sets, **made_by, **behind, "info": chosen.info}

    def finish() -> dict[str, Any]:
        if taking is not None:
            taking.check(chosen.ids)
        return _write(out, chosen, flat({**spread, **_radii(chosen)}, context))

    done = world.on_main(finish)
    if taking is not None:  # on rank 0; the others do not wait, since writing may take longer than an exchange may
        taking.take(chosen.ids, workers=None, progress=True)
    if world.is_main:
        written = f"; {write}: the same {counted(size, 'sample')} as {form}" if write else ""
        typer.echo(json.dumps(done) if as_json else f"{out}: {size} of {len(rows)} rows, by {strategy}{written}")


def _check_alike(real: Rows, rows: Rows) -> None:
    if real.shape != rows.shape:
        raise UserError(f"{real.where}: rows of shape {[*real.shape]}, but {rows.where} has {[*rows.shape]}")


def _integers(path: Path | None, rows: Rows, world: World) -> NDArray[np.int64] | None:
    """This rank's integers of a file with one per row; None without a file."""
    from entroloop.data.sources.row_files import read_integers

    return None if path is None else read_integers(path, len(rows))[world.share(len(rows))]


def _taking(rows: Rows, source: str | None, write: Path | None, form: str) -> Taking | None:
    """What `--source` and `--write` ask for, checked before the choice. None without them.

    Features that `entroloop encode` made say how their samples were read. The chosen samples are read in the same way.
    """
    from entroloop.data.sources.begun import source_digest
    from entroloop.data.sources.settings import Settings
    from entroloop.data.store import manifest
    from entroloop.data.take import Taking

    if source is None and write is None:
        return None
    if source is None or write is None:
        raise UserError(f"{'--write' if source is None else '--source'}: give --source and --write together")
    made = manifest.read(rows.path).about.get("encode") if rows.path.is_dir() else None
    taking = Taking(source, write, cast("Form", form), Settings(**(made["settings"] if made else {})))
    if made and made["source"] != source_digest(taking.source):
        raise UserError(f"--source {source}: is not the source of the features in {rows.path}")
    if len(taking) != len(rows):
        raise UserError(f"--source {source}: has {len(taking)} samples, but {rows.where} has {len(rows)} rows")
    return taking


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Parses `key=value` texts. Values are read as in a configuration."""
    from entroloop.launcher.overrides import parsed

    out: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise UserError(f"--option: must be key=value, is {pair!r}")
        out[name.replace("-", "_")] = parsed(text, f"--option {name}")
    return out


def _radii(chosen: Selection) -> dict[str, float]:
    """Summary of the distances from picks to earlier picks; empty where there are none."""
    import numpy as np

    finite = chosen.radii[np.isfinite(chosen.radii)]
    if len(finite) == 0:
        return {}
    found = {"min": finite.min(), "median": np.median(finite), "mean": finite.mean(), "last": finite[-1]}
    return {f"radius_{name}": float(value) for name, value in found.items()}


def _entropies(
    all_rows: Rows, chosen: Selection, seed: int, metric: str, world: World
) -> tuple[dict[str, float], dict[str, int]]:
    """Entropies in nats of n random rows of all rows and of the chosen rows; then n and the duplicates of each."""
    import numpy as np

    from entroloop.selection import kl_entropy

    n = min(len(chosen.ids), _ENTROPY_ROWS)
    if n < 2:
        return {}, {}
    draw = np.random.default_rng([seed, *b"entropy"])
    ids = {"before": draw.permutation(len(all_rows))[:n], "after": chosen.ids[draw.permutation(len(chosen.ids))[:n]]}
    mine = world.share(n)
    found = {name: kl_entropy(all_rows[rows[mine]], metric=metric, world=world) for name, rows in ids.items()}
    nats = {f"entropy_{name}": one.nats for name, one in found.items()}
    return nats, {"entropy_n": n, **{f"entropy_floored_{name}": one.floored for name, one in found.items()}}


def _write(out: Path, chosen: Selection, done: dict[str, Any]) -> dict[str, Any]:
    """Writes the ids and, beside them, the description `done`. Returns `done` with the name and SHA-256 of the ids."""
    import numpy as np

    files.replace(out, lambda file: np.save(file, chosen.ids, allow_pickle=False))
    done["context"]["ids"] = {"file": out.name, "sha256": files.sha256(out)}
    files.put(out.with_suffix(".json"), files.json_bytes(done))
    return done
