"""Streams and training noise: every epoch follows its permutation, at any world size and from any resume point."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entroloop.data.errors import UserError
from entroloop.data.streams.noise import BLOCK, training_noise
from entroloop.data.streams.order import Order, rank_batch


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 50), seed=st.integers(0, 2**62), start=st.integers(0, 200), length=st.integers(0, 150))
def test_any_slice_of_the_stream_equals_the_whole_streams(count, seed, start, length):
    whole = Order(count, seed).rows(0, start + length)
    np.testing.assert_array_equal(Order(count, seed).rows(start, start + length), whole[start:])
    for epoch in range(len(whole) // count):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ():
    orders = {tuple(Order(50, seed).epoch(e)) for seed in range(5) for e in range(5)}
    assert len(orders) == 25


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 300), count=st.integers(1, 100), cut=st.integers(0, 100))
def test_noise_is_a_function_of_the_position(position, count, cut):
    cut = min(cut, count - 1)
    normal, uniform = training_noise((2,), position, count, seed=3)
    assert normal.shape == (count, 2)
    later, _ = training_noise((2,), position + cut, count - cut, seed=3)
    assert torch.equal(normal[cut:], later)
    assert uniform.shape == (count, 2)


def test_noise_is_standard_normal_and_blocks_differ():
    normal, uniform = training_noise((4,), 0, 100 * BLOCK, seed=0)
    assert normal.mean().item() == pytest.approx(0, abs=0.05)
    assert normal.std().item() == pytest.approx(1, abs=0.05)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.02)
    assert len(normal[:, 0].unique()) > 0.99 * len(normal)


def test_a_world_that_does_not_divide_the_batch_is_refused():
    assert rank_batch(64, 4) == 16
    with pytest.raises(UserError, match=r"train\.batch=64 does not divide over 3 processes"):
        rank_batch(64, 3)
