"""The whole loop of digits.yaml through the program: end to end, interrupted and resumed, measured, and its memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from card.common import CONFIGS, Card
from entroloop.data.runfolder import Step
from entroloop.launcher import config as configuration
from entroloop.launcher.run import runner
from entroloop.launcher.run.phases import PHASES

DIGITS = CONFIGS / "digits.yaml"


def loop(card: Card) -> None:
    common = [f"folder={card.folder}", "train.log_kimg=0.064"]
    common += card.pick([], ["data.size=64", "loop.candidates=1", "evaluation.samples=64", "sample.steps=3"])
    whole = ["run", DIGITS, *common, f"train.kimg={card.pick(2, 0.256)}", "name=whole"]
    whole.append(f"generations={card.pick(2, 1)}")
    stopped = ["run", DIGITS, *common, f"train.kimg={card.pick(20, 6.4)}", "name=stopped", "generations=1"]
    began = time.monotonic()
    first, second = _start(card, *whole), _start(card, *stopped)
    card.verdict("a training told to stop by SIGUSR1 ends with status 75", _interrupt(second, card.folder / "stopped"))
    again = _start(card, *stopped)
    card.verdict("a run of all phases ends well", _ended(first) == 0)
    card.row("a run of all phases, with the start of the process", time.monotonic() - began, "s")
    card.verdict("the stopped run ends well when it is started again", _ended(again) == 0)
    log = (card.folder / "stopped" / "log.txt").read_text()
    card.verdict("it resumes from its checkpoint", "resumed at" in log)
    _read(card, whole)
    _measured_on_the_cpu(card, whole)
    _memory(card, [*common, f"train.kimg={card.pick(2, 0.256)}", "name=memory", "generations=1"])


def _start(card: Card, *arguments: object, on_cpu: bool = False) -> subprocess.Popen[str]:
    environment = card.on_cpu() if on_cpu else dict(os.environ)
    return subprocess.Popen(
        card.entroloop(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _ended(process: subprocess.Popen[str]) -> int:
    out = process.communicate()[0]
    if process.returncode:
        print(out[-2000:], flush=True)
    return process.returncode


def _interrupt(process: subprocess.Popen[str], run: Path) -> bool:
    """Waits for the first line of the training, then asks the process to stop."""
    stats = run / "generation_0000" / "stats.jsonl"
    while process.poll() is None and not (stats.exists() and '"loss"' in stats.read_text()):
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(signal.SIGUSR1)
    return _ended(process) == 75


def _read(card: Card, whole: list[Any]) -> None:
    """Commands on a finished run, at the same time."""
    run = card.folder / "whole"
    commands: list[list[Any]] = [whole, ["status", run], ["report", run, "--out", card.folder / "report.html"]]
    processes = [_start(card, *command) for command in commands]
    outs = [process.communicate()[0] for process in processes]
    for command, process in zip(commands, processes, strict=True):
        card.verdict(f"{command[0]} of a finished run ends well", process.returncode == 0)
    card.verdict("a finished run is not done again", "already finished" in outs[0])


def _measured_on_the_cpu(card: Card, whole: list[Any]) -> None:
    """The same sealed features, measured by a process that sees no GPU."""
    copy = card.folder / "copy"
    shutil.copytree(card.folder / "whole", copy / "whole")
    for folder in copy.glob("whole/generation_*/metrics"):
        shutil.rmtree(folder)
    process = _start(card, *[f"folder={copy}" if str(a).startswith("folder=") else a for a in whole], on_cpu=True)
    card.verdict("the same features are measured on the CPU", _ended(process) == 0)
    worst, name = 0.0, ""
    for path in sorted((card.folder / "whole").glob("generation_*/metrics/metrics.jsonl")):
        other = copy / "whole" / path.parent.parent.name / "metrics" / "metrics.jsonl"
        for ours, theirs in zip(_numbers(path), _numbers(other), strict=True):
            assert ours[0] == theirs[0], (ours, theirs)
            off = abs(ours[1] - theirs[1]) / max(abs(theirs[1]), 1e-3)
            if off > worst:
                worst, name = off, ours[0]
    card.within(f"measures against the CPU's, largest relative difference {name}".rstrip(), worst, 1e-6)


def _numbers(path: Path) -> list[tuple[str, float]]:
    """Every number of a file of rows, with its key."""
    found = []

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}.{name}", inner)
        elif isinstance(value, float):
            found.append((key, value))

    for line in path.read_text().splitlines():
        walk("", json.loads(line))
    return found


def _memory(card: Card, overrides: list[str]) -> None:
    """Memory of the device after each phase, in this process."""
    config = configuration.load(DIGITS, overrides)
    for phase in PHASES:
        runner.run(config, card.world, lambda: False, until=Step(-1 if phase.once else 0, phase.name))
        card.row(f"memory of tensors after {phase.name}", card.allocated(), "MiB")
        card.row(f"memory that torch holds after {phase.name}", torch.cuda.memory_reserved() / 2**20, "MiB")
