"""Checks, from the environment alone and before anything is made, that the launch fits the configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from entroloop.data.errors import UserError, reason
from entroloop.data.wording import counted
from entroloop.data.world import World
from entroloop.trainer.network import check_precision
from entroloop.trainer.train_config import TrainConfig, micro_batches


def check_launch(config: TrainConfig, world: World) -> int:
    """The ZeRO stage that these processes would train with, 0 for plain training. Makes no engine.

    Raises UserError when the launch is not the one that the configuration asks for, DeepSpeed is needed but missing,
    the device lacks the precision, or the batch does not divide over the processes.
    """
    check_precision("train", config.precision, world.device)
    micro_batches(config, world.size)
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        raise UserError(
            f"ACCELERATE_DYNAMO_BACKEND={compiler}: launch without --dynamo_backend, set train.compile=true"
        )
    for name in ("FSDP", "MEGATRON_LM"):
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise UserError(f"ACCELERATE_USE_{name}: this trainer has DDP and DeepSpeed's ZeRO: launch without {name}")
    stage = _zero_stage(config)
    if stage:
        _check_deepspeed(stage, world)
    kind = f"zero{stage}" if stage else "ddp" if world.size > 1 else "single"
    if config.engine not in ("auto", kind):
        raise UserError(
            f"train.engine={config.engine}: this was launched as {kind} with {counted(world.size, 'process')}: start "
            "it with torchrun or accelerate launch on as many processes as you want, or set train.engine=auto"
        )
    return stage


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _zero_stage(config: TrainConfig) -> int:
    """1, 2 or 3 if the configuration or `accelerate launch --use_deepspeed` asks for DeepSpeed; else 0."""
    configured = int(config.engine[-1]) if config.engine.startswith("zero") else 0
    if not _is_set("ACCELERATE_USE_DEEPSPEED"):
        return configured
    if not configured and config.engine != "auto":
        raise UserError(
            f"train.engine={config.engine}: this was launched with --use_deepspeed: launch without, or set "
            "train.engine=zero2, or auto"
        )
    asked = _launched_stage()
    if configured and asked is not None and asked != configured:
        raise UserError(f"train.engine={config.engine}: this was launched for ZeRO stage {asked}: set one of them")
    return configured or asked or 2


def _launched_stage() -> int | None:
    """The stage that DeepSpeed's file or the launcher asks for, None if neither names a stage."""
    stage = deepspeed_file().get("zero_optimization", {}).get("stage")
    if stage in (None, "auto"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if stage is not None and str(stage) not in ("1", "2", "3"):
        raise UserError(f"DeepSpeed's zero_optimization.stage={stage}: must be 1, 2 or 3, or launch without DeepSpeed")
    return None if stage is None else int(stage)


def _check_deepspeed(stage: int, world: World) -> None:
    if _is_set("ACCELERATE_USE_CPU"):
        raise UserError(
            f"train.engine=zero{stage}: ACCELERATE_USE_CPU is set, with which accelerate silently trains plain DDP: "
            "unset it (on a CPU, launch with --multi_gpu or torchrun)"
        )
    if "RANK" not in os.environ and world.size == 1:
        raise UserError(
            f"train.engine=zero{stage}: DeepSpeed needs a launcher: start with torchrun or accelerate launch"
        )
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"train.engine=zero{stage}: DeepSpeed is not installed ({reason(error)}): "
            "pip install 'entroloop[deepspeed]'"
        ) from error


def deepspeed_file() -> dict[str, Any]:
    """The DeepSpeed configuration that accelerate was given (`deepspeed_config_file`); empty without one.

    Raises UserError when the file is not a DeepSpeed configuration in JSON, or has an optimizer or a scheduler.
    """
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        assert isinstance(found.get("zero_optimization", {}), dict)
    except (OSError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"{path}: not a DeepSpeed configuration in JSON ({reason(error)})") from error
    for section in ("optimizer", "scheduler"):
        if section in found:
            raise UserError(f"{path}: {section}: this trainer brings its own (train.lr, …): leave the section out")
    return dict(found)
