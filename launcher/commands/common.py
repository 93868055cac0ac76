"""Arguments, printed words and the rows of a rank, which several commands share."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entroloop.data.errors import UserError
from entroloop.data.wording import counted
from entroloop.launcher.packaged import names
from entroloop.selection.catalogue import DISTANCES

COLORS = ("auto", "grey", "rgb")
FORMS = ("shards", "folder", "npz", "keys")
JOBS = ("run", "import", "seal", "arm", "report")  # kinds of job beside the phases
PHASES = ("prepare", "select", "train", "sample", "encode", "evaluate")  # here, since reading PHASES itself takes long

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from entroloop.data.sources.rows import Rows
    from entroloop.data.store.manifest import Manifest
    from entroloop.data.world import World

ConfigFile = Annotated[
    Path,
    typer.Argument(help=f"A YAML file, or a packaged configuration: {', '.join(names())}.", show_default=False),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value …", show_default=False)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=lambda on: _quieter(on), help="Print only results, warnings and errors."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=lambda on: _louder(on), help="Print progress every 5 seconds.")
]
Features = Annotated[Path, typer.Argument(help="A .npy or .npz file of shape [N, D], or a sealed feature folder.")]


def one_of(names: Iterable[str]) -> dict[str, Any]:
    """Keywords of a typer option that takes one of these names: help and shell completion show them."""
    known = list(names)
    return {"metavar": "|".join(known), "autocompletion": lambda: known}


def part_option(*names: str, help: str) -> Any:
    """The option `--part i::n`, read as a Part."""
    return typer.Option(*names or ("--part",), help=help, parser=_part, metavar="i::n")


def _part(text: str) -> Any:
    from entroloop.data.seeds import parse_part

    return parse_part(text)


def _at_least_one(workers: int | None) -> int | None:
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    return workers


WHICH = "The array of an .npz file, or the encoder of a feature folder, if there are several"
Source = Annotated[str, typer.Argument(help="Any source that import reads: a name, a file or a folder.")]
Resolution = Annotated[int | None, typer.Option(help="Side in pixels, after a centre crop to a square.")]
Split = Annotated[str | None, typer.Option(help="train, test, …, if the source has splits.")]
Color = Annotated[str, typer.Option(help="auto is grey if every image is grey.", **one_of(COLORS))]
Labels = Annotated[bool, typer.Option(help="Keep the labels.")]
ShardSize = Annotated[int | None, typer.Option(help="Samples per shard; 1,000, fewer if large.")]
Encoding = Annotated[str, typer.Option(help="Format of the images in shards.", **one_of(("png", "npy")))]
Filter = Annotated[
    str,
    typer.Option(
        help="Filter of the resize; auto is box if the factor is a whole number, else lanczos.",
        **one_of(("auto", "box", "lanczos")),
    ),
]
SourceKey = Annotated[str | None, typer.Option("--key", help=f"{WHICH}.")]
Workers = Annotated[int | None, typer.Option(help="Number of processes; default one per core.", callback=_at_least_one)]
Part = Annotated[
    Any, part_option(help="i::n makes only the pieces i, i + n, …; run once more without --part to complete.")
]
As = Annotated[
    str, typer.Option("--as", help="shards are sealed; folder has image files; npz has one array.", **one_of(FORMS))
]
MetricName = Annotated[str, typer.Option("--metric", help=f"{', '.join(DISTANCES.built_in)}, or module:attribute.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def _quieter(on: bool) -> bool:
    """Applies to the terminal only. A run's log file keeps all lines."""
    if on:
        from entroloop.data import progress

        progress.BARS = False
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)
    return on


def _louder(on: bool) -> bool:
    if on:
        from entroloop.data import progress

        progress.EVERY = 5.0
        logging.getLogger("entroloop").setLevel(logging.DEBUG)
    return on


def set_line(dest: Path, sealed: Manifest) -> str:
    """Describes a sealed data set in one line."""
    about = sealed.about
    shape = " x ".join(str(n) for n in about["shape"])
    classes = f", {about['num_classes']} classes" if about.get("num_classes") and about["labelled"] else ""
    samples = counted(sealed.count, sealed.kind.removesuffix("s"))
    return f"{dest}: {samples} of {shape}{classes} in {counted(len(about['shards']), 'shard')}"


def usable(rows: Rows, world: World) -> NDArray[Any]:
    """This rank's vectors. Every rank raises the same UserError if any rank's vectors contain an unusable value."""
    mine = world.share(len(rows))

    def check() -> None:
        problem = rows.vectors().problem(mine)
        if problem is not None:
            raise UserError(problem)

    world.agree(check)
    return rows[mine]
