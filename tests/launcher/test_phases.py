"""The order of phases, the pools, and the configuration values that decide each result."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from loops import tiny

from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.store.shards import REAL
from entroloop.data.world import World
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.phases import BY_NAME
from entroloop.launcher.run.recipes import inputs, next_step, recipes, steps
from entroloop.selection.pool import LoopConfig, pool_of, training_size


def test_next_phase_is_the_first_unsealed_one_for_every_prefix():
    order = list(steps(2))
    assert order[0] == PREPARE
    assert len(order) == 11
    for n in range(len(order) + 1):
        sealed = set(order[:n])
        assert next_step(sealed.__contains__, 2) == (order[n] if n < len(order) else None)
    assert order == sorted(order, key=lambda s: s.generation)


@pytest.mark.parametrize("paradigm", ["replace", "accumulate", "accumulate-subsample"])
def test_a_step_reads_earlier_ones_in_the_order_in_which_they_are_run(paradigm, tmp_path):
    config = tiny(tmp_path, "generations=3", f"loop.paradigm={paradigm}", "train.warm_start=true", "train.flip=true")
    order = list(steps(3))
    for step in order:
        read = [order.index(s) for s in inputs(config, step)]
        assert read == sorted(set(read)), step
        assert all(n < order.index(step) for n in read), step


def test_a_gap_is_filled_first():
    sealed = set(steps(2)) - {Step(0, "encode")}
    assert next_step(sealed.__contains__, 2) == Step(0, "encode")


@pytest.mark.parametrize("generation", [1, 2, 5])
def test_pools(generation):
    replace = pool_of(LoopConfig(paradigm="replace"), generation, 10)
    assert replace.pool == (generation - 1,)
    assert not replace.keep
    grow = LoopConfig(paradigm="accumulate")
    assert pool_of(grow, generation, 10).keep
    assert training_size(grow, generation, 10) == 10 * (generation + 1)
    subsample = LoopConfig(paradigm="accumulate-subsample")
    assert pool_of(subsample, generation, 10).pool == (REAL, *range(generation))
    assert training_size(subsample, generation, 10) == 10


def shared(folder, first, second):
    a, b = (recipes(tiny(folder, "generations=3", *o)) for o in (first, second))
    return list(itertools.takewhile(lambda s: a[s] == b[s], a))


def test_strategies_share_all_of_generation_zero(tmp_path):
    found = shared(tmp_path, ["selection.strategy=greedy"], ["selection.strategy=random"])
    assert found[-1] == Step(0, "evaluate")
    assert len(found) == 6


def test_seeds_share_only_the_preparation(tmp_path):
    assert shared(tmp_path, ["seed=0"], ["seed=1"]) == [PREPARE]


def test_every_section_changes_the_steps_it_decides(tmp_path):
    first_changed = {
        "data.heldout=63": PREPARE,
        "train.lr=0.1": Step(0, "train"),
        "network.channels=[4,4]": Step(0, "train"),
        "sample.steps=4": Step(0, "sample"),
        "evaluation.samples=20": Step(0, "evaluate"),
        "loop.paradigm=accumulate": Step(1, "select"),
        "loop.candidates=3": Step(0, "sample"),
    }
    for override, step in first_changed.items():
        found = shared(tmp_path, [], [override])
        assert list(steps(3))[len(found)] == step, override


def test_an_evaluation_setting_leaves_later_training_alone(tmp_path):
    a, b = recipes(tiny(tmp_path)), recipes(tiny(tmp_path, "evaluation.samples=20"))
    assert a[Step(1, "train")] == b[Step(1, "train")]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_caches_of_a_gpu_are_emptied_after_a_phase(device, tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(device))
    monkeypatch.setitem(BY_NAME, "train", SimpleNamespace(work=lambda *given: "done"))
    context = Context(tiny(tmp_path), Layout(tmp_path), World(device=torch.device(device)))
    assert runner.perform(context, Step(0, "train")) == "done"
    assert emptied == (["cuda"] if device == "cuda" else [])
