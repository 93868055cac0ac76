"""A whole run in a process group whose exchanges may take 5 s, with a rank 0 that takes longer wherever it works alone.

NCCL ends a job when one exchange takes longer than the group's limit, so no rank may wait for rank 0 inside an
exchange.
"""

import datetime
import functools
import socket
import time
from typing import Any

import forked
import pytest
from loops import tiny_file

from entroloop.data import world
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.launcher import __main__ as program
from entroloop.launcher import process
from entroloop.trainer import generate

LIMIT, SLOW = 5.0, 6.5  # seconds


TRACKER = """
import time


def slow(call):
    print(f"slow: tracker, {call}", flush=True)
    time.sleep(6.5)


def tracker(name, project, folder, options):
    slow("start")
    calls = []

    def log(numbers, images):
        if not calls:
            slow("log")
        calls.append(images)

    return log, lambda: slow("finish")
"""


def slow_rank_0(arguments):
    """For a forked process: `entroloop …`, where rank 0 is slow, once each, in all that it does while others wait."""
    seen = set()

    def slowed(rank, function, name):
        def work(*given, **options):
            if rank == 0 and name not in seen:
                seen.add(name)
                print(f"slow: {name}", flush=True)
                time.sleep(SLOW)
            return function(*given, **options)

        return work

    def replaced(method):
        original = getattr(world.World, method)

        def call(self, function):
            where = f"{function.__module__}.{function.__qualname__}".removeprefix("entroloop.")
            return original(self, slowed(self.rank, function, where) if self.size > 1 else function)

        setattr(world.World, method, call)

    def made(rank, *given, **options):
        setattr(generate.Generator, "samples", slowed(rank, generate.Generator.samples, "samples"))  # noqa: B010
        return world.join(rank, *given, **options, timeout=datetime.timedelta(seconds=LIMIT))

    for method in ("on_main", "agree"):
        replaced(method)
    setattr(process, "join", functools.wraps(world.join)(made))  # noqa: B010
    program.main(list(map(str, arguments)))


SITES = {
    "an import and the fit of a classifier": "launcher.run.phases.prepare._work",
    "encoding": "launcher.run.phases.encode.encode_part",
    "sealing of features": "launcher.run.phases.encode.encode_set",
    "writing and sealing of the training set": "launcher.run.phases.select._work",
    "statistics of training": "trainer.stats.Window.add",
    "the start of a tracker": "tracker, start",
    "a line for a tracker": "tracker, log",
    "a checkpoint": "trainer.saver.Saver.settle",
    "the export of weights": "trainer.train.Trainer.export",
    "staging": "launcher.run.phases.train._staged",
    "sampling": "samples",
    "sealing of samples": "launcher.run.phases.sample._work",
    "a row of measures": "launcher.run.phases.evaluate.evaluate",
    "retention": "launcher.run.runner.run",
    "the end of a tracker": "tracker, finish",
}


@pytest.mark.long
def test_every_phase_waits_for_a_slow_rank_0_longer_than_an_exchange_may_take(tmp_path):
    # Lines of statistics come between checkpoints, for which ranks would wait outside torch anyway.
    config = tiny_file(
        tmp_path, "data.labelled=16", "selection.encoder=classifier", "train.kimg=0.16", "keep.samples=needed",
        "keep.features=needed", "keep.checkpoints=none", "train.log_kimg=0.064",
    )  # fmt: skip
    (tmp_path / "slow_tracker.py").write_text(TRACKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place: dict[str, Any] = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    own = [f"modules={tmp_path}", "tracking.trackers=[slow_tracker:tracker]"]
    command = ["run", config, *own, "--scratch", tmp_path / "scratch"]
    ranks = [
        forked.Forked(slow_rank_0, command, merged=True, **{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    said = [rank.communicate(600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    slow = [line.removeprefix("slow: ") for line in said[0].splitlines() if line.startswith("slow: ")]
    for what, where in SITES.items():
        assert any(line.startswith(where) for line in slow), (what, slow)
    assert "slow: " not in said[1]
    assert manifest.is_sealed(Layout(tmp_path / "runs" / "tiny").of(Step(1, "evaluate")))
