"""`entroloop entropy`: the entropy of any set of vectors, in one process or under torchrun."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from entroloop.launcher.commands.common import WHICH, Features, Json, MetricName, Quiet, Verbose, usable


def entropy_command(
    features: Features,
    k: Annotated[int, typer.Option(help="Use distances to the k-th nearest other row.")] = 1,
    metric: MetricName = "euclidean",
    key: Annotated[str | None, typer.Option("--key", "--encoder", help=f"{WHICH}.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Kozachenko-Leonenko entropy of a set of vectors, in nats. Compare values at equal n only."""
    from entroloop.data.errors import naming
    from entroloop.data.sources.row_files import opened
    from entroloop.launcher.process import world_from_environment
    from entroloop.selection import kl_entropy

    world = world_from_environment()
    with opened(features, key) as rows, naming(queries=rows.where, k="--k"):
        entropy = kl_entropy(usable(rows, world), k, metric=metric, world=world)
    if world.is_main:
        numbers = {name: getattr(entropy, name) for name in ("nats", "n", "d", "k", "floored")}
        if as_json:
            typer.echo(json.dumps(numbers))
        else:
            typer.echo(f"{entropy.nats:.6g} nats (n {entropy.n}, d {entropy.d}, k {k}, {entropy.floored} at the floor)")
