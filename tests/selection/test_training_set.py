"""The shards of a training set: any number of ranks writes the same bytes, and a stopped rank leaves whole shards."""

import threading

import numpy as np
import pytest
from loops import VECTORS, tiny
from thread_world import ThreadWorld, on_threads

from entroloop.data.errors import Interrupted
from entroloop.data.runfolder import Layout, Step
from entroloop.data.seeds import Part
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, is_done, seal_dataset, shard_name, write_shard
from entroloop.data.world import World
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.phases.select import SELECT
from entroloop.selection import training_set
from entroloop.selection.training_set import Candidates, write_selected, write_shards

SIZE = 4  # of a shard


def source(folder, count, labelled=True):
    r = np.random.default_rng(count)
    for number, start in enumerate(range(0, count, 10)):
        n = min(10, count - start)
        labels = r.integers(0, 3, n) if labelled else None
        where = Provenance.sampled(count, start, start + n)
        write_shard(folder, number, r.normal(size=(n, 2)).astype(np.float32), labels, where, first_key=start)
    seal_dataset(folder)
    return Dataset(folder)


@pytest.fixture
def sources(tmp_path):
    real = Candidates(source(tmp_path / "real", 25), np.arange(20, 3, -1), real=True)
    return [Candidates.whole(source(tmp_path / "a", 13)), real, Candidates.whole(source(tmp_path / "b", 11))]


IDS = np.array([40, 2, 3, 30, 12, 13, 14, 29, 1, 0, 22, 23, 38])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_samples_are_those_of_the_sources_in_order(sources, tmp_path):
    write_selected(sources, IDS, tmp_path / "whole", shard_size=SIZE, about={}, made_from={})
    found = Dataset(tmp_path / "whole")
    every = np.concatenate([one.dataset.take(one.rows) for one in sources])
    np.testing.assert_array_equal(found.all(), every[np.sort(IDS)])
    assert found.shard_counts == [4, 4, 4, 1]
    labels = np.concatenate([one.labels for one in sources if one.labels is not None])
    np.testing.assert_array_equal(found.labels, labels[np.sort(IDS)])
    real = found.provenance.generation == -1
    np.testing.assert_array_equal(found.provenance.index[real], np.arange(20, 3, -1)[[0, 1, 9, 10, 16]])
    assert set(found.provenance.generation[~real]) == {13, 11}


def test_one_source_without_labels_leaves_the_set_without(sources, tmp_path):
    sources.append(Candidates.whole(source(tmp_path / "c", 5, labelled=False)))
    write_selected(sources, IDS, tmp_path / "whole", shard_size=SIZE, about={}, made_from={})
    assert Dataset(tmp_path / "whole").labels is None


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_parts_write_the_bytes_of_the_whole(sources, tmp_path, ranks):
    write_selected(sources, IDS, tmp_path / "whole", shard_size=SIZE, about={}, made_from={})
    for rank in range(ranks):
        write_shards(sources, IDS, tmp_path / "parts", SIZE, Part(rank, ranks))
    seal_dataset(tmp_path / "parts")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_stopped_part_keeps_its_shards_and_the_next_attempt_writes_the_others_only(sources, tmp_path, monkeypatch):
    looks = iter([False, False, True])
    with pytest.raises(Interrupted, match="before shard 2"):
        write_shards(sources, IDS, tmp_path / "set", SIZE, Part(), lambda: next(looks))
    assert [is_done(tmp_path / "set", i) for i in range(4)] == [True, True, False, False]
    monkeypatch.setattr(Dataset, "shard", spied := _Counted(Dataset.shard))
    write_shards(sources, IDS, tmp_path / "set", SIZE, Part(1, 2))
    assert spied.calls == 1  # shard 3 has one sample
    write_selected(sources, IDS, tmp_path / "set", shard_size=SIZE, about={}, made_from={})
    write_selected(sources, IDS, tmp_path / "whole", shard_size=SIZE, about={}, made_from={})
    assert content(tmp_path / "set") == content(tmp_path / "whole")


class _Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __get__(self, instance, kind):
        def call(*given):
            self.calls += 1
            return self.function(instance, *given)

        return call


def _work(world, config, made):
    threading.current_thread().name = f"rank {world.rank}"
    SELECT.work(Context(config, Layout(config.run_folder), world), Step(0, "select"), None)
    return sorted(number for name, number in made if name == f"rank {world.rank}")


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_of_a_run_share_the_shards(tmp_path, monkeypatch, ranks):
    made = []

    def seen(folder, number, *given, **options):
        made.append((threading.current_thread().name, number))
        write_shard(folder, number, *given, **options)

    monkeypatch.setattr(training_set, "write_shard", seen)
    configs = [tiny(tmp_path, "data.shard_size=10", f"name={name}", of=VECTORS) for name in ("alone", "shared")]
    runner.run(configs[0], World(), lambda: False, until=Step(0, "select"))
    runner.run(configs[1], World(), lambda: False, until=Step(-1, "prepare"))
    made.clear()
    assert on_threads(ranks, _work, configs[1], made) == [list(range(rank, 5, ranks)) for rank in range(ranks)]
    alone, shared = (Layout(config.run_folder).of(Step(0, "select")) for config in configs)
    assert content(shared) == content(alone)


def test_rank_0_writes_what_its_view_of_the_folder_lacks(tmp_path, monkeypatch):
    """As a shared folder may show it for a while."""
    config = tiny(tmp_path, "data.shard_size=10", of=VECTORS)
    runner.run(config, World(), lambda: False, until=Step(-1, "prepare"))
    agree = ThreadWorld.agree

    def loses(self, function):
        result = agree(self, function)
        if self.rank == 0:
            for path in Layout(config.run_folder).of(Step(0, "select")).glob(f"{shard_name(4)[:-3]}*"):
                path.unlink()
        return result

    monkeypatch.setattr(ThreadWorld, "agree", loses)
    on_threads(2, _work, config, [])
    assert len(Dataset(Layout(config.run_folder).of(Step(0, "select")))) == 48
