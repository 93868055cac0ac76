"""EMA rules against the closed forms of their sources."""

import pytest
import torch

from entroloop.trainer import ema
from entroloop.trainer.ema import EmaConfig


def test_half_life_is_a_half_life_and_does_not_depend_on_the_batch():
    config = EmaConfig(halflife_kimg=1.0, rampup=1e9)
    for batch in (10, 50, 250):
        kept = 1.0
        for seen in range(batch, 1001, batch):
            kept *= ema.decay(config, seen, batch)
        assert kept == pytest.approx(0.5, rel=1e-9)


def test_ramp_up_shortens_the_half_life_early():
    config = EmaConfig(halflife_kimg=500, rampup=0.05)
    assert ema.decay(config, 1000, 64) == pytest.approx(0.5 ** (64 / 50))


def test_power_rule_is_the_papers():
    config = EmaConfig(rule="power", power=0.75, max=0.9999, power_batch=128)
    for step in (1, 10, 10_000, 10**9):
        assert ema.decay(config, step * 128, 128) == pytest.approx(min(0.9999, 1 - (1 + step) ** -0.75))


def test_update_is_the_weighted_mean_in_place():
    averages = [torch.ones(3), torch.zeros(2, 2)]
    weights = [torch.zeros(3, requires_grad=True), torch.ones(2, 2)]
    ema.update(averages, weights, 0.9)
    torch.testing.assert_close(averages[0], torch.full((3,), 0.9))
    torch.testing.assert_close(averages[1], torch.full((2, 2), 0.1))
    ema.update(averages, weights, ema.decay(EmaConfig(rule="none"), 1, 1))
    torch.testing.assert_close(averages[0], torch.zeros(3))
