"""The split of the real data by use."""

from __future__ import annotations

import numpy as np
import pytest

from entroloop.data.errors import UserError
from entroloop.data.split import split_real


def test_real_split_is_disjoint_and_measures_are_the_same_in_all_runs():
    one, two = (split_real(100, 40, 20, 15, split_seed=3, run_seed=seed) for seed in (1, 2))
    uses = np.concatenate([one.training, one.heldout, one.labelled, one.fresh])
    assert np.array_equal(np.sort(uses), np.arange(100))
    assert [len(x) for x in (one.training, one.heldout, one.labelled, one.fresh)] == [40, 20, 15, 25]
    assert np.array_equal(one.heldout, two.heldout)
    assert np.array_equal(one.labelled, two.labelled)
    assert not np.array_equal(one.training, two.training)
    other = split_real(100, 40, 20, 15, split_seed=4, run_seed=1)
    assert not np.array_equal(one.heldout, other.heldout)


def test_the_trusted_rows_have_no_other_use_and_leave_the_training_set_as_it_is():
    without, with_ = (split_real(100, 40, 20, 15, trusted, split_seed=3, run_seed=1) for trusted in (0, 10))
    uses = np.concatenate([with_.training, with_.heldout, with_.labelled, with_.trusted, with_.fresh])
    assert np.array_equal(np.sort(uses), np.arange(100))
    assert (len(without.trusted), len(with_.trusted), len(with_.fresh)) == (0, 10, 15)
    for use in ("training", "heldout", "labelled"):
        assert np.array_equal(getattr(without, use), getattr(with_, use))
    assert np.array_equal(with_.fresh, without.fresh[:15])
    with pytest.raises(UserError, match=r"data\.trusted=26.*ask for 101 real samples"):
        split_real(100, 40, 20, 15, 26, split_seed=0, run_seed=0)


def test_real_split_refuses_more_than_there_is():
    with pytest.raises(UserError, match="ask for 101 real samples, but the source has 100"):
        split_real(100, 66, 20, 15, split_seed=0, run_seed=0)
