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
from entroloop.launcher.preview.disk import RealFacts
from entroloop.launcher.preview.memory import count_parameters
from entroloop.launcher.run.phase import Phase
from entroloop.selection.pool import check_fresh
from entroloop.trainer.catalogue import own_parts
from entroloop.trainer.tracking import check_installed

if TYPE_CHECKING:
    import torch


def check_ready(
    config: Config, ahead: Collection[Phase], real: RealFacts | None, device: torch.device | None = None
) -> None:
    """Raises UserError where something that the configuration names is missing, does not fit or does not work.

    ahead   the phases that are to be done
    device  where encoders are tried; None: the CPU
    real    a description of the real data, if they were opened; without it the user's own things are only imported
    """
    check_installed(config.tracking)
    layout = Layout(config.run_folder)
    for phase in ahead:
        phase.ready(config, layout)
    if real is not None:
        check_real(config, real)
    if names := own_encoders(config, ahead):
        from entroloop.data.features import encoder  # needs torch

        encoder.check_own(names, real.shape if real else None, device or encoder.CPU)
    if real is not None and uses_own_parts(config, ahead):
        from entroloop.trainer.trial import check_own

        classes = real.classes if config.train.labels else 0
        check_own(config.network, config.train.objective, config.sample, real.shape, classes)


def own_encoders(config: Config, ahead: Collection[Phase]) -> list[str]:
    """The encoders of the user's own that the phases ahead call."""
    return [name for name in config.encoders if name not in ENCODERS.built_in and any(p.encodes for p in ahead)]


def uses_own_parts(config: Config, ahead: Collection[Phase]) -> bool:
    """Whether the phases ahead train or sample with a network, objective or sampler of the user's own."""
    used = any(phase.name in ("train", "sample") for phase in ahead)
    return used and bool(own_parts(config.network.kind, config.train.objective, config.sample.sampler))


def check_real(config: Config, real: RealFacts) -> None:
    """Raises UserError when the real data do not satisfy all that the configuration requires of them."""
    data, classes = config.data, real.classes if config.train.labels else 0
    _check_import_keys(config, real)
    split = split_real(
        real.count, data.size, data.heldout, data.labelled, data.trusted,
        split_seed=data.split_seed, run_seed=config.seed,
    )  # fmt: skip
    check_fresh(config.loop, config.generations, data.size, len(split.fresh))
    if not real.labelled:
        if "classifier" in config.encoders:
            raise UserError(
                "encoder classifier (selection.encoder, evaluation.encoders): the data set has no labels: use pixel"
            )
        if config.train.labels:  # choices by class need labels, too
            raise UserError("train.labels=true: the real data have no labels: set train.labels=false")
    if config.sample.guide_folder:
        from entroloop.trainer.guidance import check_base, check_guide  # needs torch

        check_guide(config.sample.guide_folder, real.shape, classes)
        if config.sample.guide_kind == "neon":
            check_base(config.sample.guide_folder, config.network, config.train.objective, real.shape, classes)
    if config.train.initial_folder:
        from entroloop.trainer import initial  # needs torch

        initial.load(config.train.initial_folder, config.network, real.shape, classes)
    count_parameters(config, real.shape)


def _check_import_keys(config: Config, real: RealFacts) -> None:
    """Raises UserError for a key of the import that a sealed set does not follow, as it is never imported again."""
    data = config.data
    if not manifest.is_sealed(Path(data.located)):
        return
    resized = data.resolution is not None and real.shape[1:] not in ((), (data.resolution, data.resolution))
    limited = data.limit is not None and data.limit < real.count
    for key, ignored in (("split", data.split is not None), ("resolution", resized), ("limit", limited)):
        if ignored:
            raise UserError(
                f"data.{key}={getattr(data, key)}: has no effect on {data.source}, a sealed set of {real.count} "
                f"samples of shape {list(real.shape)}: leave it out, or give another set, imported with --{key}"
            )
