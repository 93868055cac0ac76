import atexit
import math
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import Forked
from ranks import on_ranks
from slow_references import split
from thread_world import on_threads

from entroloop.data import world
from entroloop.data.errors import Failed, UserError
from entroloop.selection.exact.distance import power_of_two
from entroloop.selection.exact.rows import RankRows


def _take(world, parts, ids):
    own = RankRows.of(torch.from_numpy(parts[world.rank]), world)
    before = world.traffic.exchanges
    rows = own.take(torch.from_numpy(ids))
    return rows.numpy(), world.traffic.exchanges - before, own.total, own.offset


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
    own = RankRows.of(torch.from_numpy(parts[world.rank]), world)
    counts = [min(rank, len(part)) for rank, part in enumerate(parts)]  # rank 0 proposes nothing
    local = torch.arange(counts[world.rank])
    before = world.traffic.exchanges
    ids, values, rows, edges = own.share(local, local.double() + 0.5, counts, (world.rank + 0.25, 7.0))
    return ids.tolist(), values.tolist(), rows.numpy(), edges, world.traffic.exchanges - before


@pytest.mark.parametrize("size", [2, 3])
def test_proposals_of_all_ranks_arrive_in_one_exchange(size):
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    parts = split(x, size)
    offsets = np.cumsum([0] + [len(p) for p in parts])
    counts = [min(rank, len(part)) for rank, part in enumerate(parts)]
    expected = [int(o) + i for o, count in zip(offsets, counts, strict=False) for i in range(count)]
    for ids, values, rows, edges, exchanges in on_ranks(size, _share, parts):
        assert ids == expected
        assert values == [i + 0.5 for count in counts for i in range(count)]
        np.testing.assert_array_equal(rows, x[expected])
        assert edges == [(rank + 0.25, 7.0) for rank in range(size) if counts[rank]]
        assert exchanges == 1


def _uneven(world, counts):
    rows = torch.arange(sum(counts) * 1024.0).view(-1, 1024).split(counts)
    before = world.traffic.exchanges, world.traffic.bytes
    found = world.gather_rows(rows[world.rank], counts)
    return found.numpy(), world.traffic.exchanges - before[0], world.traffic.bytes - before[1]


@pytest.mark.parametrize("run", [on_ranks, on_threads])
@pytest.mark.parametrize(("counts", "exchanges", "received"), [([2, 0, 9], 1, 27), ([2, 0, 900], 2, 902)])
def test_rows_of_uneven_ranks_are_padded_only_while_that_is_cheap(run, counts, exchanges, received):
    for rows, calls, traffic in run(3, _uneven, counts):
        np.testing.assert_array_equal(rows, np.arange(sum(counts) * 1024.0).reshape(-1, 1024))
        assert (calls, traffic) == (exchanges, received * 4096)


class OfALibrary(Exception):  # noqa: N818
    def __init__(self, *, code: int) -> None:  # cannot be made again from its pickle
        super().__init__(f"code {code}")


def _raises_on(world, ranks, error):
    if world.rank in ranks:
        raise error
    return world.rank


def _agrees(world, ranks, kind):
    error = OfALibrary(code=7) if kind == "library" else UserError(f"rank {world.rank} is wrong")
    try:
        return world.agree(lambda: _raises_on(world, ranks, error))
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"


def test_an_error_of_any_rank_is_raised_on_every_rank():
    assert on_ranks(3, _agrees, (), "user") == [0, 1, 2]
    assert on_ranks(3, _agrees, (1, 2), "user") == ["UserError: rank 1 is wrong"] * 3
    assert on_ranks(3, _agrees, (2,), "library") == ["RuntimeError: OfALibrary: code 7"] * 3
    with pytest.raises(UserError, match="alone"):
        world.World().agree(lambda: _raises_on(world.World(), (0,), UserError("alone")))


def _main_only(world):
    called = []

    def call():
        called.append(world.rank)
        return 7

    value = world.on_main(call)
    return value, called, world.any(world.rank == world.size - 1), world.any(False)


@pytest.mark.parametrize("size", [1, 3])
def test_what_rank_0_finds_and_what_any_rank_says_is_known_to_all(size):
    for rank, (value, called, any_, none) in enumerate(on_ranks(size, _main_only)):
        assert (value, called) == (7, [0] if rank == 0 else [])
        assert (any_, none) == (True, False)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("n", [0, 2, 8, 1000])
def test_shares_of_rows_cover_them_once_and_evenly(size, n):
    shares = [range(n)[world.World(rank, size).share(n)] for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def _left_alone(rank, place, exchange):
    here = world.join(rank, 2, init_method=place)
    here.barrier()
    if rank == 1:
        os._exit(0)
    try:
        EXCHANGES[exchange](here)
    except Failed as error:
        print(error)


EXCHANGES = {
    "a barrier": lambda here: here.barrier(),
    "a reduction over all ranks": lambda here: here.any(True),
    "the gathering of rows": lambda here: here.gather_rows(torch.zeros(3, 2), [3, 3]),
    "the gathering of small values": lambda here: here.agree(lambda: None),
    "the rotation of rows": lambda here: here.rotate(torch.zeros(3, 2), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_rank_whose_peer_ended_says_so_in_one_line(tmp_path, exchange):
    ranks = [Forked(_left_alone, r, f"file://{tmp_path}/meet", exchange) for r in range(2)]
    out, _ = ranks[0].communicate(timeout=60)
    ranks[1].communicate(timeout=60)
    (line,) = out.splitlines()
    assert line.startswith(f"another rank ended during {exchange}: the logs of the other ranks")


def _meet(rank, place):
    atexit.register(lambda: print("left", not dist.is_initialized()))  # called after what is registered later
    world.join(rank, 2, init_method=place).barrier()
    assert dist.is_initialized()


def test_a_process_that_ends_has_left_its_group(tmp_path):
    """Gloo's thread aborts a few of those that have not: `terminate called without an active exception`."""
    ranks = [Forked(_meet, r, f"file://{tmp_path}/meet") for r in range(2)]
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["left True\n"] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]


def test_powers_of_two_are_exact():
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [math.ldexp(1, e) for e in exponents.tolist()]
    assert power_of_two(torch.tensor([-2000, 2000])).tolist() == [2.0**-1022, 2.0**1023]
