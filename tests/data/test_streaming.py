"""Streams from shards are exact at any world size, number of workers and resume point. Bad shards stop the run."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from present import present

from entroloop.data.errors import UserError
from entroloop.data.memory import free_bytes
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Encoding, Provenance, seal_dataset, write_shard
from entroloop.data.streams import choice
from entroloop.data.streams.choice import open_stream
from entroloop.data.streams.order import Grouped, Order
from entroloop.data.streams.resident import Resident
from entroloop.data.streams.streaming import Streaming

COUNTS = [5, 3, 7, 1, 4, 6]
N = sum(COUNTS)


def make(folder: Path, counts: list[int], labels: bool = True, encoding: Encoding = "png") -> Dataset:
    start = 0
    for number, count in enumerate(counts):
        ids = np.arange(start, start + count)
        samples = np.random.default_rng(0).integers(0, 256, (start + count, 3, 4, 4), dtype=np.uint8)[start:]
        samples[:, 0, 0, 0] = ids  # every image shows its number
        write_shard(
            folder, number, samples, ids * 10 if labels else None, Provenance.sampled(0, start, start + count),
            first_key=start, encoding=encoding,
        )  # fmt: skip
        start += count
    seal_dataset(folder)
    return Dataset(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("set")
    make(path, COUNTS)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# --- order --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 2**40), st.integers(0, 3))
def test_every_epoch_is_a_permutation_and_groups_are_neighbours(counts, buffer, seed, epoch):
    order = Grouped(counts, seed, buffer)
    n = sum(counts)
    rows = order.rows(epoch * n, (epoch + 1) * n)
    assert np.array_equal(np.sort(rows), np.arange(n))
    if len(counts) > buffer:
        owner = np.repeat(np.arange(len(counts)), counts)[rows]
        first, last = (np.array([f(np.flatnonzero(owner == s)) for s in range(len(counts))]) for f in (min, max))
        for at in range(n):
            assert ((first <= at) & (at <= last)).sum() <= buffer


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 7), st.integers(0, 5))
def test_order_does_not_depend_on_how_it_is_cut(start, length, buffer, seed):
    order = Grouped(COUNTS, seed, buffer)
    whole = order.rows(0, 120)
    assert np.array_equal(Grouped(COUNTS, seed, buffer).rows(start, start + length), whole[start : start + length])


def test_few_shards_are_shuffled_as_in_memory_and_epochs_and_seeds_differ():
    assert np.array_equal(Grouped(COUNTS, 3, 6).rows(0, 60), Order(N, 3).rows(0, 60))
    order = Grouped(COUNTS, 3, 2)
    assert not np.array_equal(order.rows(0, N), order.rows(N, 2 * N))
    assert not np.array_equal(order.rows(0, N), Grouped(COUNTS, 4, 2).rows(0, N))


# --- batches ------------------------------------------------------------------------------------------------------


@given(st.sampled_from([1, 2, 3, 4]), st.integers(0, 5), st.sampled_from([2, 16]), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_ranks_together_give_the_order_at_any_world_size_and_resume_point(folder, size, resumed, buffer, seed):
    batch = 12
    stream = Streaming(Dataset(folder), workers=0, buffer=buffer)
    seen, until = resumed * batch, (resumed + 4) * batch
    ranks = [
        list(stream.batches(seed=seed, seen=seen, until=until, batch=batch, rank=r, size=size)) for r in range(size)
    ]
    ids = np.concatenate([part.ids for step in zip(*ranks, strict=True) for part in step])
    assert np.array_equal(ids, Grouped(COUNTS, seed, buffer).rows(seen, until))
    for part in (part for rank in ranks for part in rank):
        assert np.array_equal(part.samples[:, 0, 0, 0], part.ids)
        assert np.array_equal(present(part.labels), part.ids * 10)
        assert part.samples.dtype == torch.uint8


def test_streamed_batches_equal_those_in_memory(folder):
    arguments = {"seed": 5, "seen": 24, "until": 100, "batch": 8, "rank": 1, "size": 2}
    streams = Resident(Dataset(folder)), Streaming(Dataset(folder), workers=0), Streaming(Dataset(folder), workers=2)
    for one, two, three in zip(*(stream.batches(**arguments) for stream in streams), strict=True):
        for other in (two, three):
            assert torch.equal(one.samples, other.samples)
            assert torch.equal(one.labels, other.labels)
            assert np.array_equal(one.ids, other.ids)
            assert one.position == other.position


def test_workers_leave_the_global_generator_alone(folder):
    before = torch.get_rng_state()
    assert len(list(Streaming(Dataset(folder), workers=1).batches(seed=0, seen=0, until=16, batch=8))) == 2
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("labels", "encoding"), [(False, "png"), (True, "npy")])
def test_sets_without_labels_and_of_arrays(tmp_path, labels, encoding):
    dataset = make(tmp_path, [4, 4], labels, encoding)
    (found,) = Streaming(dataset, workers=0).batches(seed=0, seen=0, until=8, batch=8)
    assert np.array_equal(found.samples, dataset.all()[found.ids])
    assert (found.labels is None) is not labels


# --- damage -------------------------------------------------------------------------------------------------------


def spoil(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)


def place_of(dataset: Dataset, shard: int, row: int) -> int:
    place: int = dataset.side(dataset.shard_names[shard])["columns"]["offset"][row]
    return place


def drain(stream: Streaming, **kwargs) -> list[Any]:
    return list(stream.batches(**{"seed": 0, "seen": 0, "until": 2 * N, "batch": 2, **kwargs}))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_stops_the_run_with_one_line(copy, workers):
    dataset = Dataset(copy)
    spoil(copy / "shard-000002.tar", place_of(dataset, 2, 4) + 50)
    with pytest.raises(UserError, match=r"shard-000002.tar: damaged shard, at sample 000000012: .*CRC-32") as caught:
        drain(Streaming(dataset, workers=workers))
    assert "\n" not in str(caught.value)


def test_another_valid_shard_in_its_place_is_noticed(copy, tmp_path):
    other = make(tmp_path / "other", [5, 3, 7])
    changed = np.array(other.shard(2)[0], np.uint8)
    changed[:, 1] ^= 1
    (tmp_path / "new").mkdir()
    write_shard(tmp_path / "new", 2, changed, np.arange(7), Provenance.sampled(0, 0, 7), first_key=8)
    shutil.copy(tmp_path / "new" / "shard-000002.tar", copy)
    with pytest.raises(UserError, match=r"shard-000002.tar: damaged shard, at sample .* content changed"):
        drain(Streaming(Dataset(copy), workers=0))
    shutil.copy(tmp_path / "new" / "shard-000002.json", copy)
    with pytest.raises(UserError, match=r"shard-000002.json: content changed since it was sealed"):
        drain(Streaming(Dataset(copy), workers=0))


def test_missing_and_truncated_shards_stop_the_run(copy):
    path = copy / "shard-000004.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"shard-000004.tar: damaged shard"):
        drain(Streaming(Dataset(copy), workers=0))
    path.unlink()
    with pytest.raises(UserError, match=r"shard-000004.tar: cannot be read \(No such file"):
        drain(Streaming(Dataset(copy), workers=1))


def test_damaged_samples_are_skipped_only_when_asked_and_are_counted(copy):
    dataset = Dataset(copy)
    spoil(copy / "shard-000002.tar", place_of(dataset, 2, 4) + 50)
    stream = Streaming(dataset, workers=0, skip_damaged=True)
    found = drain(stream, batch=13)
    assert len(stream.damaged) == 2  # two epochs
    assert all("shard-000002.tar" in line for line in stream.damaged)
    ids = np.concatenate([batch.ids for batch in found])
    assert len(ids) == 2 * N
    assert 12 not in ids
    assert all(np.array_equal(batch.samples[:, 0, 0, 0], batch.ids) for batch in found)


class Deadly(Dataset):
    def path(self, name: str) -> Path:
        if name == "shard-000003.tar" and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().path(name)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch says it once more when it tidies
def test_a_worker_that_dies_stops_the_run(folder):
    said = []
    try:
        try:
            drain(Streaming(Deadly(folder), workers=2))
        except RuntimeError as error:
            said.append(str(error))
    except RuntimeError as late:  # torch's handler of the dead child speaks when the signal comes, also after ours
        said.append(str(late))
    assert said
    assert all("worker" in line for line in said)


# --- choice -------------------------------------------------------------------------------------------------------


def test_sets_are_kept_in_memory_where_they_fit(folder, monkeypatch, tmp_path):
    dataset = Dataset(folder)
    size = N * 3 * 4 * 4
    assert choice.decoded_bytes(dataset) == size
    for free, kind in ((4 * size, Resident), (4 * size - 4, Streaming)):
        monkeypatch.setattr(choice, "free_bytes", lambda free=free: free)
        assert isinstance(open_stream(dataset, memory_share=0.25), kind)
    assert isinstance(open_stream(dataset, "resident", memory_share=0), Resident)
    assert isinstance(open_stream(dataset, "streaming", memory_share=1), Streaming)


def test_free_memory_is_plausible():
    assert 2**20 < free_bytes() < 2**46
