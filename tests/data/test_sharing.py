from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ranks import on_ranks
from test_streaming import COUNTS, make

from entroloop.data import owners
from entroloop.data.errors import UserError
from entroloop.data.store.dataset import Dataset
from entroloop.data.streams import sharing
from entroloop.data.world import World


def shared_by_ranks(world: World, folder: Path) -> tuple[np.ndarray, int, int]:
    samples = sharing.decode_together(Dataset(folder), world)
    before = samples.copy()
    world.barrier()
    if world.rank == world.size - 1:
        samples[0, 0, 0, 0] = 200
    world.barrier()
    return before, int(samples[0, 0, 0, 0]), int(before[0, 0, 0, 0])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_of_a_machine_share_one_copy_of_the_set(tmp_path, size):
    dataset = make(tmp_path, COUNTS)
    for samples, changed, original in on_ranks(size, shared_by_ranks, tmp_path):
        assert np.array_equal(samples, dataset.all())
        assert (original, changed) == (0, 200)


def alone(world: World, folder: Path) -> int:
    # As if every rank were on a machine of its own.
    owners.machine = lambda: str(world.rank)  # type: ignore[assignment]
    samples = sharing.decode_together(Dataset(folder), world)
    samples[0, 0, 0, 0] = world.rank + 50
    world.barrier()
    return int(samples[0, 0, 0, 0])


def test_machines_do_not_share(tmp_path):
    make(tmp_path, COUNTS)
    assert on_ranks(2, alone, tmp_path) == [50, 51]


def refused(world: World, folder: Path) -> str:
    try:
        sharing.decode_together(Dataset(folder), world)
    except UserError as error:
        return str(error)
    return ""


def test_a_damaged_shard_stops_every_rank(tmp_path):
    make(tmp_path, COUNTS)
    (tmp_path / "shard-000001.tar").write_bytes(b"")
    first, second = on_ranks(2, refused, tmp_path)
    assert first == second
    assert "shard-000001.tar: damaged shard" in first
