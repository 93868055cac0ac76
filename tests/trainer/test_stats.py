"""Lines of statistics: who waits for whom."""

import threading

import torch
from thread_world import on_threads

from entroloop.trainer.stats import Window
from entroloop.trainer.train_config import TrainConfig


def _add(world, path, told, went_on):
    def tell(line):
        assert world.is_main
        assert not went_on.wait(0.3)
        told.append(line["loss"])

    window = Window(path, TrainConfig(batch=2, kimg=1, log_kimg=0.004), world, tell)
    for seen in (2, 4):
        window.add(torch.full((1,), world.rank + 1.0), torch.ones(1), torch.ones(()), seen, 0.0)
    if not world.is_main:
        went_on.set()


def test_ranks_wait_outside_torch_until_a_line_is_told(tmp_path):
    """A tracker may take longer than an exchange of tensors may, so no rank may begin the next step meanwhile."""
    told: list[float] = []
    on_threads(2, _add, tmp_path / "stats.jsonl", told, threading.Event())
    assert told == [1.5]
