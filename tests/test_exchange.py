import atexit

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import Forked
from ranks import on_ranks
from slow_references import split

from entroloop.data import world
from entroloop.selection.exact.rows import Shard


def _take(world, parts, ids):
    shard = Shard.of(torch.from_numpy(parts[world.rank]), world)
    before = world.traffic.exchanges
    rows = shard.take(torch.from_numpy(ids))
    return rows.numpy(), world.traffic.exchanges - before, shard.total, shard.offset


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float16])
def test_every_rank_gets_the_rows_it_asks_for_in_order(size, dtype):
    x = np.random.default_rng(0).integers(0, 200, size=(50, 3)).astype(dtype)
    ids = np.random.default_rng(1).integers(50, size=17)
    results = on_ranks(size, _take, split(x, size), ids)
    for rows, exchanges, total, _ in results:
        np.testing.assert_array_equal(rows, x[ids])
        assert exchanges == (0 if size == 1 else 1)
        assert total == 50
    assert [r[3] for r in results] == np.cumsum([0] + [len(p) for p in split(x, size)])[:-1].tolist()


def _share(world, parts):
    shard = Shard.of(torch.from_numpy(parts[world.rank]), world)
    local = torch.arange(min(2, len(shard.rows)))
    before = world.traffic.exchanges
    ids, values, rows, edges = shard.share(local, local.double() + 0.5, 2, (world.rank + 0.25, 7.0, 9.0))
    return ids.tolist(), values.tolist(), rows.numpy(), edges, world.traffic.exchanges - before


@pytest.mark.parametrize("size", [2, 3])
def test_proposals_of_all_ranks_arrive_in_one_exchange(size):
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    parts = split(x, size)
    offsets = np.cumsum([0] + [len(p) for p in parts])
    expected = [int(o) + i for o, p in zip(offsets, parts, strict=False) for i in range(min(2, len(p)))]
    for ids, values, rows, edges, exchanges in on_ranks(size, _share, parts):
        assert ids == expected
        assert values == [i + 0.5 for p in parts for i in range(min(2, len(p)))]
        np.testing.assert_array_equal(rows, x[expected])
        assert edges == [(rank + 0.25, 7.0, 9.0) for rank in range(size)]
        assert exchanges == 1


def _meet(rank, place):
    atexit.register(lambda: print("left", not dist.is_initialized()))  # called after what is registered later
    world.join(rank, 2, init_method=place).barrier()
    assert dist.is_initialized()


def test_a_process_that_ends_has_left_its_group(tmp_path):
    """Gloo's thread aborts a few of those that have not: `terminate called without an active exception`."""
    ranks = [Forked(_meet, r, f"file://{tmp_path}/meet") for r in range(2)]
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["left True\n"] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]
