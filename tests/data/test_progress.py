"""Progress: timed lines with the numbers that were told, and the state that others read."""

import logging

import pytest

from entroloop.data.progress import Progress, told


@pytest.fixture
def clock(monkeypatch):
    """The seconds that Progress sees; tests set `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr("entroloop.data.progress.time.monotonic", lambda: now[0])
    return now


def test_one_line_per_interval_with_the_numbers_told_last(clock, caplog):
    caplog.set_level(logging.INFO, "entroloop")
    with Progress("generation 0 train", 10_000, "img", done=1000) as shown:
        for second in range(1, 91):
            clock[0] = 100.0 + second
            shown.tell(loss=2.0 / second, gradient_norm=None)
            shown.advance(50)
    assert [line.split(maxsplit=3)[3] for line in caplog.messages] == [
        "30.0 s  2,500 of 10,000 img, loss 0.0667, 50 img/s, 0:02:30 left",
        "60.0 s  4,000 of 10,000 img, loss 0.0333, 50 img/s, 0:02:00 left",
        "90.0 s  5,500 of 10,000 img, loss 0.0222, 50 img/s, 0:01:30 left",
    ]
    assert shown.state["loss"] == 2.0 / 90


def test_a_process_that_shows_nothing_logs_nothing(clock, caplog):
    caplog.set_level(logging.INFO, "entroloop")
    with Progress("x", 10, "img", show=False) as hidden:
        clock[0] += 1000
        hidden.advance(5)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"done": 0, "total": 5, "unit": "img", "rate": 0.0}, "0.00 img/s"),
        ({"done": 5, "total": 5, "unit": "B", "rate": 1e6}, "1,000,000 B/s"),
        ({"done": 1, "total": 5, "unit": "img", "rate": 0.5, "loss": 0.125}, "loss 0.125, 0.50 img/s, 0:00:08 left"),
    ],
)
def test_a_state_is_told(state, text):
    assert told(state) == text


def test_a_quiet_command_shows_no_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for bars in (True, False):
        monkeypatch.setattr("entroloop.data.progress.BARS", bars)
        assert (Progress("x", 10, "img")._bar is not None) == bars
