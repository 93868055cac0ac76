"""Arguments, printed words and the rows of a rank, which several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entroloop.data.errors import UserError
from entroloop.selection.catalogue import DISTANCES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from entroloop.data.sources.rows import Rows
    from entroloop.data.store.manifest import Manifest
    from entroloop.data.world import World

ConfigFile = Annotated[Path, typer.Argument(help="YAML configuration.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value …", show_default=False)]
Features = Annotated[Path, typer.Argument(help="A .npy or .npz file of shape [N, D], or a sealed feature folder.")]
WHICH = "The array of an .npz file, or the encoder of a feature folder, if there are several"
MetricName = Annotated[str, typer.Option("--metric", help=f"{', '.join(DISTANCES.built_in)}, or module:attribute.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def set_line(dest: Path, sealed: Manifest) -> str:
    """Describes a sealed data set in one line."""
    about = sealed.about
    shape = " x ".join(str(n) for n in about["shape"])
    classes = f", {about['num_classes']} classes" if about.get("num_classes") and about["labelled"] else ""
    return f"{dest}: {sealed.count:,} {sealed.kind} of {shape}{classes} in {count(len(about['shards']), 'shard')}"


def count(n: int, what: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def usable(rows: Rows, world: World) -> NDArray[Any]:
    """This rank's vectors. Every rank raises the same UserError if any rank's vectors contain an unusable value."""
    mine = world.share(len(rows))

    def check() -> None:
        problem = rows.vectors().problem(mine)
        if problem is not None:
            raise UserError(problem)

    world.agree(check)
    return rows[mine]
