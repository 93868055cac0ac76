"""Real process groups for tests: `on_ranks(3, function, *args)` runs a module-level function on 3 gloo ranks.

The processes of each world size are forked once per session and reused.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import CONTEXT

from entroloop.data import world as world_module

_POOLS: dict[int, list[tuple[Any, Any]]] = {}


def _serve(rank: int, size: int, rendezvous: str, connection: Any) -> None:
    torch.set_num_threads(1)
    world = world_module.join(rank, size, init_method=f"file://{rendezvous}", device=torch.device("cpu"))
    while True:
        task = connection.recv()
        if task is None:
            break
        function, args = task
        try:
            connection.send((True, function(world, *args)))
        except BaseException as error:
            traceback.print_exc()
            connection.send((False, error))
    world_module.leave()


def _pool(size: int) -> list[tuple[Any, Any]]:
    if size not in _POOLS:
        rendezvous = str(Path(tempfile.mkdtemp()) / "rendezvous")
        _POOLS[size] = []
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(rank, size, rendezvous, theirs), daemon=True)
            process.start()
            _POOLS[size].append((process, ours))
    return _POOLS[size]


def on_ranks(
    size: int, function: Callable[..., Any], *args: Any, per_rank: list[tuple[Any, ...]] | None = None
) -> list[Any]:
    """Runs `function(world, *args)` (or `function(world, *per_rank[rank])`) on every rank; results in rank order.

    An exception on any rank is raised here once every rank has answered.
    """
    pool = _pool(size)
    for rank, (_, connection) in enumerate(pool):
        connection.send((function, per_rank[rank] if per_rank is not None else args))
    answers = []
    for process, connection in pool:
        while not connection.poll(0.5):
            if not process.is_alive():
                stop()
                raise RuntimeError("a rank died")
        answers.append(connection.recv())
    for good, value in answers:
        if not good:
            raise value
    return [value for _, value in answers]


def stop() -> None:
    """Ends the processes of all world sizes; between two tests they only wait."""
    for pool in _POOLS.values():
        for process, _ in pool:
            process.kill()
            process.join()
    _POOLS.clear()
