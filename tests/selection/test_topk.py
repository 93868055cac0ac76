import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entroloop.selection.exact import topk


def _lists(values, ids):
    return torch.tensor(values, dtype=torch.float64)[None], torch.tensor(ids)[None]


def test_smallest_first_and_ties_to_the_smaller_id():
    distances, ids = topk.merge(_lists([2.0, 1.0], [5, 9]), _lists([1.0, 1.0], [3, 11]), 3)
    assert ids.tolist() == [[3, 9, 11]]
    assert distances.tolist() == [[1.0, 1.0, 1.0]]


def test_empty_places_come_last():
    distances, ids = topk.merge(topk.empty(1, 2), _lists([4.0], [7]), 2)
    assert ids.tolist() == [[7, -1]]
    assert distances.tolist() == [[4.0, float("inf")]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=30), st.integers(1, 6), st.data())
def test_any_order_of_merging_gives_the_sorted_list(values, k, data):
    ids = data.draw(st.permutations(range(len(values))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), min_size=2, max_size=2)))
    parts = [_lists(v, i) for v, i in zip(np.split(values, cuts), np.split(ids, cuts), strict=True)]
    left = topk.merge(topk.merge(parts[0], parts[1], k), parts[2], k)
    right = topk.merge(parts[0], topk.merge(parts[2], parts[1], k), k)
    expected = sorted(zip(values, ids, strict=True))[:k]
    assert list(zip(left[0][0].tolist(), left[1][0].tolist(), strict=True)) == expected
    assert left[1].tolist() == right[1].tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40), st.integers(1, 5))
def test_pairs_become_one_sorted_list_a_row(pairs, k):
    row, value = (torch.tensor(x) for x in zip(*pairs, strict=True))
    ids = torch.arange(len(pairs)).flip(0)
    rows, (distances, found) = topk.from_pairs(row, value.double(), ids, k)
    assert rows.tolist() == sorted(set(row.tolist()))
    for place, r in enumerate(rows.tolist()):
        expected = sorted((v, i) for (q, v), i in zip(pairs, ids.tolist(), strict=True) if q == r)[:k]
        kept = found[place] >= 0
        assert list(zip(distances[place][kept].tolist(), found[place][kept].tolist(), strict=True)) == expected
