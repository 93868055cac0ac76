"""Items that a thread makes early."""

import threading
from collections.abc import Generator

import pytest
import torch

from entroloop.data.devices import ReadLater, ahead, pinned

CPU = torch.device("cpu")


def test_items_come_in_order_and_at_most_two_early():
    made, makers = [], set()

    def items():
        for i in range(6):
            made.append(i)
            makers.add(threading.current_thread())
            yield i

    found = []
    for i in ahead(items(), CPU):
        found.append(i)
        assert len(made) <= i + 4  # this one, two that wait, and one that the thread is making
    assert found == list(range(6))
    assert threading.current_thread() not in makers
    assert not any(maker.is_alive() for maker in makers)


def test_an_exception_comes_in_place_of_its_item():
    def items():
        yield 1
        raise OSError("gone")

    found = ahead(items(), CPU)
    assert next(found) == 1
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_an_iterator_that_is_left_ends_its_thread():
    before = threading.active_count()
    found = ahead(iter(range(100)), CPU)
    next(found)
    assert isinstance(found, Generator)
    found.close()
    assert threading.active_count() == before


def test_nothing_is_copied_on_a_cpu():
    x = torch.tensor(3.0)
    assert pinned(x, CPU) is x
    assert float(ReadLater(x)) == 3
