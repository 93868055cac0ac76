"""What people see of a run: its log file, lines on a pipe, -q and -v, `status` and `status --watch`."""

import logging
import time

import pytest
from forked import entroloop
from loops import VECTORS, command, tiny_file

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout
from entroloop.launcher import status
from entroloop.launcher.run.log_file import logged

pytestmark = pytest.mark.slow

LONG = ("generations=1", "train.kimg=400", "train.log_kimg=0.8", "data.labelled=0")  # minutes, if it went on


def until(look, seconds=60):
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_every_attempt_adds_to_the_log_file_and_quiet_is_for_the_terminal(tmp_path):
    file = tiny_file(tmp_path, "generations=1", of=VECTORS)
    first = command("run", file, "--quiet")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    layout = Layout(tmp_path / "runs" / "tiny")
    lines = layout.log.read_text().splitlines()
    phases = ("prepare", "select", "train", "sample", "encode", "evaluate")
    assert [next(p for p in phases if p in line) for line in lines if " s  " in line] == list(phases)
    assert all(line[:4].isdigit() for line in lines)
    second = command("run", file, "generations=2")
    assert "generation 1" in second.stdout
    assert layout.log.read_text().splitlines()[: len(lines)] == lines
    assert "generation 1   evaluate" in layout.log.read_text()


def test_a_run_shows_its_loss_to_a_pipe_the_log_and_status(tmp_path):
    file = tiny_file(tmp_path, *LONG, of=VECTORS)
    layout = Layout(tmp_path / "runs" / "tiny")
    running = entroloop("run", file, "-v")
    try:
        until(lambda: layout.log.is_file() and "gradient norm" in layout.log.read_text())
        [entry] = [phase for phase in status.inspect(layout.run)["phases"] if phase["state"] == "running"]
        assert entry["progress"][0]["loss"] > 0
        shown = status.table(status.inspect(layout.run))
        assert "at work     generation 0 train: loss " in shown
        assert "last loss   " in shown
        watching = entroloop("status", layout.run, "--watch", "--every", "0.1", output=tmp_path / "watched")
        until(lambda: "tiny: running" in (tmp_path / "watched").read_text())
    finally:
        running.send_signal(15)
        done = running.result()
    assert done.returncode == 75
    assert " img, loss " in done.stderr
    assert " left" in done.stderr
    assert "img/s" not in done.stdout
    assert "ended by Interrupted" in layout.log.read_text()
    seen = watching.result()
    assert seen.returncode == 0
    assert "tiny: interrupted" in seen.stdout


def test_an_error_that_no_line_can_tell_has_its_traceback_in_the_log(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(ZeroDivisionError), logged(log, main=True):
        1 / 0  # noqa: B018
    assert "ended by ZeroDivisionError" in log.read_text()
    assert "Traceback" in log.read_text()
    with pytest.raises(UserError), logged(log, main=True):
        raise UserError("train.lr: wrong")
    assert log.read_text().splitlines()[-1].endswith("ended by UserError: train.lr: wrong")


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    before = list(logging.getLogger().handlers)
    with logged(tmp_path / "absent" / "log.txt", main=True):
        logging.getLogger("entroloop").warning("one")
        logging.getLogger("entroloop").warning("two")
    assert logging.getLogger().handlers == before


def test_other_ranks_write_no_log(tmp_path):
    with logged(tmp_path / "log.txt", main=False):
        logging.getLogger("entroloop").warning("one")
    assert not (tmp_path / "log.txt").exists()


def test_watching_a_run_that_is_not_at_work_prints_it_once(finished, capsys):
    status.watch(finished.run, 0.1)
    printed = capsys.readouterr().out
    assert printed.count("tiny: finished") == 1
    last = status.inspect(finished.run)["last"]
    assert last["generation"] == 1
    assert f"last loss   {last['loss']:.3g} (generation 1, 0.3 kimg)" in printed
    assert command("status", finished.run, "--watch", "--json").returncode == 2
