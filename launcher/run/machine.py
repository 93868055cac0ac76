"""Checks that this machine has all that the next steps of a run need: cores, weights files, a folder and disk space.

Config + phases ahead  ->  check_machine  ->  nothing, or one line

`entroloop run` and its dry run check this. `slurm submit` and `slurm script` do not, since they run on another machine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError, unusable
from entroloop.data.runfolder import Layout, Step
from entroloop.launcher.config import Config
from entroloop.launcher.preview.disk import RealFacts, least_bytes
from entroloop.launcher.run.phase import Phase
from entroloop.launcher.run.retention import size

if TYPE_CHECKING:
    import torch

ANY_IMAGES = (3, 32, 32)  # a shape for which encoders are loaded where the real data cannot be opened


def check_machine(
    config: Config, ahead: Collection[Phase], shape: tuple[int, ...] | None, device: torch.device | None = None
) -> None:
    """Raises UserError, naming the key or file, for the first thing that this machine lacks.

    ahead   the phases that are to be done; nothing is checked without any
    shape   of a sample, (C, H, W) or (D,); None if it is not known
    device  where encoders are loaded; None: the CPU
    """
    if not ahead:
        return
    cores = os.cpu_count() or 1
    if config.threads > cores:
        raise UserError(f"threads={config.threads}: this machine has {cores} cores: give at most as many")
    with_weights = [n for n in config.encoders if n in ENCODERS.built_in and ENCODERS.facts(n).weights]
    if with_weights and any(phase.encodes for phase in ahead):
        from entroloop.data.features import encoder  # needs torch

        for name in with_weights:
            encoder.load_encoder(name, shape or ANY_IMAGES, device=device or encoder.CPU)
    check_writable(config.run_folder)


def check_writable(folder: Path) -> None:
    """Makes and removes a file in the folder, or in the nearest folder above it that exists.

    Raises UserError, naming the folder, where the operating system refuses.
    """
    above = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise unusable(error, above) from error


def check_space_ahead(config: Config, source: RealFacts | None, ahead: Sequence[Step]) -> None:
    """`check_space` for the first of the steps ahead, and for those of generation 0, before which no file is removed.

    Without it, a run would find only after its first training that its samples can never fit.
    """
    for step in dict.fromkeys([*ahead[:1], *(step for step in ahead if step.generation <= 0)]):
        check_space(config, source, step)


def check_space(config: Config, source: RealFacts | None, step: Step) -> None:
    """Raises UserError when the disk of the run has less space than the step needs at least.

    source  None if the real data are not known; nothing is checked then
    """
    if source is None:
        return
    layout = Layout(config.run_folder)
    folders = [layout.of(step)]
    if step.phase == "prepare":
        folders.append(layout.images)
    if step.phase == "train":
        folders.append(layout.checkpoints(step.generation))
    there = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    needed, above = least_bytes(config, source, step) - there, _existing(layout.run)
    free = shutil.disk_usage(above).free
    if needed > free:
        raise UserError(
            f"{above}: {step} writes at least about {size(needed)}, and {size(free)} are free: free some space and run "
            "the same command again, or choose another folder="
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
