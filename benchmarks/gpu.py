"""Checks entroloop on one GPU and measures it, in at most 8 minutes: `make gpu`, or

    python benchmarks/gpu.py [--out runs/gpu] [--only SECTION ...] [--device cuda|pretended] [--scale full|tiny]

Needs torch and the packages that entroloop requires. The sections run in order of value, each in a process of its own
and under its own limit of time, so a hang costs one section; time that a section does not need is the next one's. Rows
are written to OUT/results.jsonl as they come:

    {"section": …, "name": …, "value": …, "unit": …}

The value of a row of unit `verdict` is true or false. A section without a library that it needs (faiss-gpu, xformers,
deepspeed) writes a row that says so. The messages of a section are in OUT/SECTION.log. The exit status is 1 when a
verdict is false or a section failed or ran out of time.

`--device pretended --scale tiny` runs every section on the device of tests/pretended. Its figures mean nothing: it
shows that the script works before a GPU is at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
IN_ALL = 480.0  # seconds
ON_PRETENDED = 1800.0  # seconds of a section there


class Section(NamedTuple):
    """One part of the run: its seconds, with the start of its process, and its function in benchmarks/card.

    A section may also take the time that the sections before it did not need.
    """

    name: str
    seconds: float
    function: str


SECTIONS = (
    Section("facts", 20, "facts:facts"),
    Section("exactness", 65, "selecting:exactness"),
    Section("training", 80, "training_steps:training"),
    Section("sampling", 40, "sampling_steps:sampling"),
    Section("loop", 60, "loop:loop"),
    Section("engines", 60, "engines:engines"),
    Section("selection", 40, "selecting:speed"),
    Section("encoders", 35, "encoding:encoders"),
    Section("measures", 25, "measuring:measures"),
    Section("xformers", 20, "attention:xformers"),
    Section("compiled", 35, "compiling:compiled"),
)


def supervise(command: Sequence[str], limit: float, environment: Mapping[str, str], log: Path) -> str:
    """Runs a command and ends it, with its children, after `limit` seconds. Returns what went wrong, or nothing."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stderr=file, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"did not end within {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
    return f"status {status}: {last}" if status else ""


def run_all(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Runs the sections. Returns the exit status."""
    results = options.out / "results.jsonl"
    results.unlink(missing_ok=True)
    pretended = options.device == "pretended"
    began, wrong = time.monotonic(), []
    chosen = [section for section in SECTIONS if not options.only or section.name in options.only]
    for number, section in enumerate(chosen):
        later = sum(other.seconds for other in chosen[number + 1 :])
        limit = ON_PRETENDED if pretended else IN_ALL - (time.monotonic() - began) - later
        start = time.monotonic()
        command = [sys.executable, str(Path(__file__).resolve()), "--section", section.name]
        command += ["--until", str(start + limit)]
        command += ["--device", options.device, "--scale", options.scale, "--out", str(options.out)]
        log = options.out / f"{section.name}.log"
        problem = supervise(command, limit, environment, log) if limit > 0 else "no time was left"
        found = [{"name": "seconds", "value": round(time.monotonic() - start, 1), "unit": "s"}]
        found += [{"name": "ended", "value": problem or "well", "unit": ""}]
        with results.open("a") as file:
            file.writelines(json.dumps({"section": section.name, **row}) + "\n" for row in found)
        if problem:
            wrong.append(f"{section.name}: {problem}")
            print(wrong[-1], flush=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    verdicts = [row for row in rows if row["unit"] == "verdict"]
    wrong += [f"{row['section']}: not so: {row['name']}" for row in verdicts if not row["value"]]
    print(f"{len(verdicts)} verdicts, {len(wrong)} wrong or failed, rows in {results}", *wrong, sep="\n  ")
    return 1 if wrong else 0


def run_one(options: argparse.Namespace) -> None:
    """Runs one section in this process."""
    name = next(section.function for section in SECTIONS if section.name == options.section)
    if options.device == "pretended":
        importlib.import_module("pretended")  # before torch
    from card.common import Card

    module, _, function = name.partition(":")
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        card = Card(
            options.section, options.out / "results.jsonl", Path(folder), tiny=options.scale == "tiny",
            pretended=options.device == "pretended", until=options.until,
        )  # fmt: skip
        try:
            getattr(importlib.import_module(f"card.{module}"), function)(card)
        except Exception:
            traceback.print_exc()
            status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread may be at work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "pretended"], default="cuda")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        run_one(options)
        return 0
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("no CUDA device: `make gpu DEVICE=pretended SCALE=tiny` runs every section without one")
        return run_all(options, os.environ)
    sys.path.append(str(HERE.parent / "tests" / "pretended"))
    import compiled

    if reason := compiled.missing():
        sys.exit(reason)
    return run_all(options, compiled.environment(compiled.library(options.out)))


if __name__ == "__main__":
    sys.exit(main())
