"""Facts about this machine and installation, and trials of the properties that results rely on.

    examine  ->  {section: {name: fact}}  ->  text

A section that cannot be examined says why and never ends the command.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from entroloop.data import files, memory
from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError, unusable
from entroloop.data.features import dinov2, inception, weights
from entroloop.launcher.run.facts import processor, version
from entroloop.selection.exact.canary import check_products
from entroloop.selection.exact.formats import LONGER, NumberFormat, shortest_format
from entroloop.selection.exact.intervals import InexactProductError
from entroloop.selection.exact.sketch import Frame, Sketch, product
from entroloop.selection.neighbours import nearest
from entroloop.slurm import client

PACKAGES = (
    "entroloop", "torch", "diffusers", "accelerate", "deepspeed", "transformers", "torchmetrics", "webdataset",
    "xformers", "faiss-cpu", "faiss-gpu", "numpy", "pydantic", "typer", "pillow", "pyarrow", "pandas", "fsspec",
)  # fmt: skip
WRITTEN = 64  # MiB
ROWS, FEATURES, PRODUCT = 8192, 384, 1024  # of the trial of speed; rows of its product
GREEDY = 0.6  # pairs that greedy compares, as a share of N M, in units of the time of a pair of `nearest`
WRONG = "WRONG: "  # how a trial that failed begins

Facts = dict[str, str]


def examine(folder: Path) -> dict[str, Facts]:
    """All sections. `folder` is an existing folder, in which a file is written and removed.

    Raises UserError when there is no such folder.
    """
    files.check_folder(folder)
    sections: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        "versions": _versions,
        "machine": _machine,
        "devices": _devices,
        "engines": _engines,
        "weights": _weights,
        "SLURM": _slurm,
        "exactness": _exactness,
        "selection": _speed,
        f"folder {folder.absolute()}": lambda: _folder(folder),
    }
    return {title: _tried(section) for title, section in sections.items()}


def text(found: dict[str, Facts]) -> str:
    """The sections as lines that a bug report can hold."""
    lines = []
    for title, facts in found.items():
        width = max(map(len, facts), default=0)
        lines += [title, *(f"  {name:<{width}}  {fact}".rstrip() for name, fact in facts.items())]
    return "\n".join(lines)


def healthy(found: dict[str, Facts]) -> bool:
    """Whether no trial failed."""
    return not any(fact.startswith(WRONG) for facts in found.values() for fact in facts.values())


def _tried(section: Callable[[], Iterator[tuple[str, str]]]) -> Facts:
    facts: Facts = {}
    try:
        facts.update(section())
    except Exception as error:  # whatever is broken here is what the report is about
        facts["error"] = f"{WRONG}{type(error).__name__}: {error}"
    return facts


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    for name in PACKAGES:
        if (found := version(name)) is not None:
            yield name, found


def _machine() -> Iterator[tuple[str, str]]:
    yield "system", platform.platform()
    cores = len(os.sched_getaffinity(0))
    yield "processor", f"{processor()}, {cores} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    yield "free memory", f"{memory.free_bytes() / 2**30:.1f} GiB"
    yield "threads", f"{torch.get_num_threads()} (OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')})"


def _devices() -> Iterator[tuple[str, str]]:
    yield "torch's CUDA", torch.version.cuda or torch.version.hip or "none: torch was built for CPUs"
    if not torch.cuda.is_available():
        yield "devices", "none; everything runs on the CPU"
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if facts.major >= 8 else "no bf16"
        memory_of = f"{facts.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{number}", f"{facts.name}, {memory_of}, {facts.major}.{facts.minor}, {bf16}"
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"):
        if name in os.environ:
            yield name, os.environ[name]


def _engines() -> Iterator[tuple[str, str]]:
    yield "single", "yes"
    backends = [name for name in ("nccl", "gloo") if getattr(torch.distributed, f"is_{name}_available")()]
    yield "ddp", f"yes, by {' and '.join(backends)}" if backends else "no: torch has no nccl and no gloo"
    missing = [name for name in ("deepspeed", "transformers") if importlib.util.find_spec(name) is None]
    yield "zero1, zero2, zero3", f"no: pip install 'entroloop[deepspeed]' ({missing[0]})" if missing else "yes"


def _weights() -> Iterator[tuple[str, str]]:
    yield "folder", str(weights.weights_folder())
    where: dict[str, Callable[[], Path]] = {
        "inception": lambda: weights.find("inception", (inception.SCRIPT, *inception.STATES), ""),
        "inception-paper": lambda: weights.find("inception-paper", (inception.PAPER_STATE,), ""),
    }
    for name in ENCODERS.built_in:
        if name in dinov2.VARIANTS:
            where[name] = lambda name=name: dinov2.folder_of(name, dinov2.VARIANTS[name].weights)  # type: ignore[misc]
        if name in where:
            try:
                yield name, str(where[name]())
            except UserError:
                yield name, "no weights"


def _slurm() -> Iterator[tuple[str, str]]:
    for name in ("sbatch", "squeue", "srun", "sacct"):
        yield name, shutil.which(name) or "not found"
    if shutil.which("sbatch"):
        try:
            yield "version", client.call(["sbatch", "--version"], patience=10).strip()
        except UserError as error:
            yield "controller", f"not found ({error})"


def _exactness() -> Iterator[tuple[str, str]]:
    """Products of every format that selection would use here, checked against canonical distances."""
    draw = torch.Generator().manual_seed(0)
    rows = {
        "features": torch.randn((256, 64), generator=draw),
        "pixels": torch.randint(0, 256, (256, 192), generator=draw, dtype=torch.uint8),
    }
    for device in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))):
        for what, own in rows.items():
            chosen = shortest_format(own.to(device))
            form: NumberFormat | None = chosen
            while form is not None:
                mark = " (chosen here)" if form is chosen else ""
                yield f"{what} on {device}, {form.name}{mark}", _checked(own.to(device), form)
                form = LONGER.get(form.name)


def _checked(rows: torch.Tensor, form: NumberFormat) -> str:
    try:
        check_products(rows, form)
    except InexactProductError as error:
        return f"{WRONG}{error}"
    return f"{len(rows) ** 2:,} products within their certificates"


def _speed() -> Iterator[tuple[str, str]]:
    """The speed of selection on the CPU by half a second of real work, and the times to be expected from it."""
    draw = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn((256, FEATURES), generator=draw)
    clusters = centres[torch.randint(256, (ROWS,), generator=draw)] + torch.randn((ROWS, FEATURES), generator=draw)
    pixels = torch.randint(0, 256, (PRODUCT, FEATURES), generator=draw, dtype=torch.uint8)
    for what, rows in (("features", clusters[:PRODUCT]), ("pixels", pixels)):
        sketch = Sketch.of(rows, Frame.of(rows), shortest_format(rows))
        right = sketch.turn()
        seconds = min(_seconds(lambda: product(sketch, right)) for _ in range(3))  # noqa: B023
        rate = 2 * PRODUCT**2 * sketch.factor.shape[1] / seconds / 1e9
        yield f"products of {what}", f"{sketch.form.name}, {rate:.0f} GFLOP/s"
    pairs = ROWS**2 / 2 / _seconds(lambda: nearest(clusters, clusters, exclude_self=True, backend="torch"))
    yield "nearest", f"{pairs / 1e6:.0f} million pairs/s; about {_short(1e10 / 2 / pairs)} s for 100,000 x {FEATURES}"
    yield "greedy", f"about {_short(GREEDY * 65536 * 32768 / pairs)} s for 65,536 -> 32,768 x {FEATURES}"


def _short(number: float) -> str:
    """Two digits: 370, 11, 0.93."""
    return f"{float(f'{number:.2g}'):g}"


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _folder(folder: Path) -> Iterator[tuple[str, str]]:
    usage = shutil.disk_usage(folder)
    yield "free", f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB"
    piece = os.urandom(2**20)
    with files.temporary(folder / "doctor") as trial, files.temporary(folder / "doctor-link") as linked:
        try:
            start = time.perf_counter()
            with trial.open("xb") as file:
                for _ in range(WRITTEN):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            yield "written", f"{WRITTEN / (time.perf_counter() - start):.0f} MiB/s ({WRITTEN} MiB, then fsync)"
        except OSError as error:
            yield "written", f"{WRONG}{unusable(error, folder)}"
            return
        try:
            os.link(trial, linked)
            yield "hard links", "yes"
        except OSError as error:
            yield "hard links", f"no ({error.strerror}): files are renamed instead"
