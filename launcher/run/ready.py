"""Checks before a run begins that everything its configuration names is present and fits.

Config + the real data, where they can be opened  ->  check_ready  ->  nothing, or one line
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout
from entroloop.data.split import split_real
from entroloop.data.store import manifest
from entroloop.launcher.config import Config
from entroloop.launcher.preview.disk import RealFacts, source_of
from entroloop.launcher.preview.memory import count_parameters
from entroloop.launcher.run.phase import Phase
from entroloop.launcher.run.recipes import real_folder
from entroloop.selection.pool import check_fresh
from entroloop.trainer.tracking import check_installed

if TYPE_CHECKING:
    import torch


def check_ready(
    config: Config, ahead: Collection[Phase], device: torch.device | None = None, *, look: bool = False
) -> RealFacts | None:
    """Raises UserError where something that the configuration names is missing, does not fit or cannot be imported.

    ahead   the phases that are to be done
    device  where encoders of the user's own are tried; None for the CPU
    look    open the source even if it is not imported yet; otherwise such a source is opened only for an encoder of the
            user's own, which is tried on samples of the right shape
    ->      a description of the real data, where they were opened; else None
    """
    check_installed(config.tracking)
    layout = Layout(config.run_folder)
    for phase in ahead:
        phase.ready(config, layout)
    own = [name for name in config.encoders if name not in ENCODERS.built_in and any(p.encodes for p in ahead)]
    sealed = manifest.is_sealed(real_folder(config, layout))
    real = source_of(config) if look or own or (sealed and ahead) else None
    if real is not None:
        check_real(config, real)
    if own:
        from entroloop.data.features.encoder import check_own  # needs torch

        check_own(own, real.shape if real else None, device)
    return real


def check_real(config: Config, real: RealFacts) -> None:
    """Raises UserError when the real data do not satisfy all that the configuration requires of them."""
    data = config.data
    split = split_real(
        real.count, data.size, data.heldout, data.labelled, split_seed=data.split_seed, run_seed=config.seed
    )
    check_fresh(config.loop, config.generations, data.size, len(split.fresh))
    if not real.labelled:
        if "classifier" in config.encoders:
            raise UserError(
                "encoder classifier (selection.encoder, evaluation.encoders): the data set has no labels: use pixel"
            )
        if config.train.labels:  # choices by class need labels, too
            raise UserError("train.labels=true: the real data have no labels: set train.labels=false")
    if config.sample.guide and config.sample.guide_generation(0) is None:
        from entroloop.trainer.guidance import check_guide  # needs torch

        check_guide(Path(config.sample.guide), real.shape, real.classes if config.train.labels else 0)
    count_parameters(config, real.shape)
