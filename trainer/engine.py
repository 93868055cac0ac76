"""What runs the optimizer: one process, DDP, or DeepSpeed ZeRO-1, 2, 3, behind one small interface.

The only file that imports accelerate and deepspeed. An engine shows the trainer

    masters   the float32 tensors that the optimizer of this rank updates: whole weights, or ZeRO's local partitions
    moments   Adam's two moments, tensors like the masters
    gather    tensors like the masters -> whole tensors by parameter name, on every rank
    scatter   the inverse

so that averages, checkpoints and exports are written once and hold for every engine, and a checkpoint holds whole
tensors: it can be resumed at any world size, and by any engine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from torch import Tensor, nn

from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.trainer.network import check_precision
from entroloop.trainer.train_config import TrainConfig, micro_batches

Named = dict[str, Tensor]


def make_engine(config: TrainConfig, network: nn.Module, world: World) -> Engine:
    """The engine that the configuration asks for, around `network`. Raises UserError as `check_launch` does."""
    stage = check_launch(config, world)
    return ZeroEngine(config, network, world, stage) if stage else Engine(config, network, world)


def check_launch(config: TrainConfig, world: World) -> int:
    """The ZeRO stage that these processes would train by, 0 for plain training. Makes no engine.

    Raises UserError when what was launched is not what the configuration asks for, its library is missing, the device
    lacks the precision, or the batch does not divide over the processes.
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
            f"train.engine={config.engine}: this was launched as {kind} with {world.size} process(es): start it "
            "with torchrun or accelerate launch on as many processes as you want, or set train.engine=auto"
        )
    return stage


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _zero_stage(config: TrainConfig) -> int:
    """1, 2 or 3 where DeepSpeed is asked for, by configuration or `accelerate launch --use_deepspeed`; else 0."""
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
    """The stage that DeepSpeed's file or the launcher asks for, None where they leave it open."""
    stage = _deepspeed_file().get("zero_optimization", {}).get("stage")
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
            f"train.engine=zero{stage}: DeepSpeed is not installed ({error}): pip install 'entroloop[deepspeed]'"
        ) from error


def _deepspeed_file() -> dict[str, Any]:
    """The DeepSpeed configuration that accelerate was given (`deepspeed_config_file`); empty without one."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        assert isinstance(found.get("zero_optimization", {}), dict)
    except (OSError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"{path}: not a DeepSpeed configuration in JSON ({error})") from error
    for section in ("optimizer", "scheduler"):
        if section in found:
            raise UserError(f"{path}: {section}: this trainer brings its own (train.lr, …): leave the section out")
    return dict(found)


class Engine:
    """One process, or DDP: every rank holds whole weights, moments and averages."""

    def __init__(self, config: TrainConfig, network: nn.Module, world: World) -> None:
        self.config, self.world, self.network = config, world, network
        self.micro, self.passes = micro_batches(config, world.size)
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())  # once: walking the modules takes as long as an average
        self.accelerator = self._accelerator()
        if self.accelerator.num_processes != world.size:
            raise UserError(
                f"accelerate counts {self.accelerator.num_processes} process(es), the launcher {world.size}: start "
                "with torchrun, or with accelerate launch --multi_gpu (ACCELERATE_USE_CPU=true on a CPU)"
            )
        network.to(world.device)
        fused = {} if self.stage else {"fused": True}
        optimizer = torch.optim.AdamW(
            network.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, **fused
        )
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self._check()
        self.call = torch.compile(self.model) if config.compile else self.model

    stage = 0

    @property
    def kind(self) -> str:
        return "ddp" if self.world.size > 1 else "single"

    def _accelerator(self) -> Accelerator:
        cpu = self.world.device.type == "cpu"
        AcceleratorState._reset_state()  # an earlier training in this process may have had another precision
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # gradients lie where they are reduced
        return Accelerator(cpu=cpu, mixed_precision=self.config.precision, kwargs_handlers=[ddp])

    def _check(self) -> None:
        wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel)
        assert wrapped == (self.world.size > 1), "accelerate did not wrap the network for DDP"

    @property
    def masters(self) -> list[Tensor]:
        return [p.data for p in self.parameters]

    @property
    def adam(self) -> tuple[torch.optim.Optimizer, list[Any]]:
        """The optimizer that holds the moments, and its keys in the order of `masters`."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner, list(self.parameters)

    def one_pass(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of each of the step's `passes`: gradients are reduced in the last one only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Of the mean loss of one pass's micro-batch."""
        self.accelerator.backward(loss / self.passes)

    def finish_step(self) -> tuple[float, bool]:
        """Clips and updates. Returns the gradient's norm and whether the weights moved, the same on every rank.

        They do not move where fp16 overflowed; a norm that is not finite moved them otherwise, and spoiled them.
        """
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.config.clip or float("inf")))
        self.optimizer.step()
        self.optimizer.zero_grad()
        # With a fused optimizer accelerate cannot see that the gradient scaler skipped a step.
        overflowed = self.config.precision == "fp16" and not math.isfinite(norm)
        return norm, not overflowed

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def gather(self, local: Sequence[Tensor]) -> Named:
        """Whole tensors, on the CPU, by parameter name, of tensors like `masters`. Every rank calls it."""
        return {name: x.detach().to("cpu", copy=True) for name, x in zip(self.names, local, strict=True)}

    def scatter(self, whole: Mapping[str, Tensor], local: Sequence[Tensor]) -> None:
        """Copies whole tensors into tensors like `masters`. Every rank calls it with the same values."""
        for name, x in zip(self.names, local, strict=True):
            x.copy_(whole[name])

    # -- the state that a checkpoint holds -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Weights, Adam's moments and step count, and fp16's loss scale. Every rank calls it."""
        optimizer, keys = self.adam
        held = [optimizer.state[key] for key in keys]
        return {
            "weights": self.gather(self.masters),
            "exp_avg": self.gather([s["exp_avg"].view_as(m) for s, m in zip(held, self.masters, strict=True)]),
            "exp_avg_sq": self.gather([s["exp_avg_sq"].view_as(m) for s, m in zip(held, self.masters, strict=True)]),
            "steps": float(held[0]["step"]),
            "loss_scale": self._loss_scale(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts a state back; the network's own weights were loaded before the engine was made."""
        self.scatter(state["weights"], self.masters)
        optimizer, keys = self.adam
        for key, master in zip(keys, self.masters, strict=True):
            step = torch.tensor(state["steps"], dtype=torch.float32, device=master.device if not self.stage else "cpu")
            optimizer.state[key] = {
                "step": step,
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
        for moment in ("exp_avg", "exp_avg_sq"):
            self.scatter(state[moment], [optimizer.state[key][moment] for key in keys])
        self._set_loss_scale(state["loss_scale"])

    def _loss_scale(self) -> Any:
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def _set_loss_scale(self, value: Any) -> None:
        if value is not None and self.accelerator.scaler is not None and isinstance(value, dict):
            self.accelerator.scaler.load_state_dict(value)

    def close(self) -> None:
        self.accelerator.free_memory()


class ZeroEngine(Engine):
    """DeepSpeed ZeRO: masters and moments (1), gradients (2) and weights (3) are partitioned over the ranks."""

    def __init__(self, config: TrainConfig, network: nn.Module, world: World, stage: int) -> None:
        self.stage = stage
        super().__init__(config, network, world)
        if config.precision != "no":
            self.call = functools.partial(_in_half, self.call, next(iter(network.parameters())).dtype)

    @property
    def kind(self) -> str:
        return f"zero{self.stage}"

    def _accelerator(self) -> Accelerator:
        from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

        # A second generation in this process asks for a fresh plugin; the process group itself is the World's.
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        given = _deepspeed_file()
        zero = {"stage3_param_persistence_threshold": 0, **given.get("zero_optimization", {}), "stage": self.stage}
        asked = [
            os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") for what in ("OPTIMIZER", "PARAM")
        ]
        asked += [zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")]
        if any(device != "none" for device in asked):
            raise UserError("zero_optimization.offload_…: this trainer keeps weights and moments on the device")
        plugin = DeepSpeedPlugin(
            hf_ds_config={
                **given,
                "train_micro_batch_size_per_gpu": self.micro,
                "gradient_accumulation_steps": self.passes,
                "gradient_clipping": self.config.clip,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 10**9,
                "fp16": {"enabled": self.config.precision == "fp16"},
                "bf16": {"enabled": self.config.precision == "bf16"},
            }
        )
        backend = InitProcessGroupKwargs(backend="nccl" if self.world.device.type == "cuda" else "gloo")
        return Accelerator(
            deepspeed_plugin=plugin, mixed_precision=self.config.precision, kwargs_handlers=[backend],
            gradient_accumulation_steps=self.passes,
        )  # fmt: skip

    def _check(self) -> None:
        import deepspeed

        if not isinstance(self.model, deepspeed.DeepSpeedEngine) or self.model.zero_optimization_stage() != self.stage:
            raise UserError(
                f"train.engine=zero{self.stage}: accelerate made {type(self.model).__name__} instead of a DeepSpeed "
                f"engine of stage {self.stage}"
            )

    @property
    def masters(self) -> list[Tensor]:
        zero = self.model.optimizer
        return list(zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups)

    @property
    def adam(self) -> tuple[torch.optim.Optimizer, list[Any]]:
        return self.model.optimizer.optimizer, self.masters

    def one_pass(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.model.set_gradient_accumulation_boundary(is_boundary=last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)

    def finish_step(self) -> tuple[float, bool]:
        self.model.step()
        norm = self.model.get_global_grad_norm()
        found = 0.0 if norm is None else float(norm)
        return found if found >= 0 else math.inf, not self.model.optimizer.overflow  # -1 stands for inf and NaN there

    def set_rate(self, rate: float) -> None:
        for group in self.model.optimizer.param_groups:
            group["lr"] = rate

    def gather(self, local: Sequence[Tensor]) -> Named:
        from deepspeed.utils import safe_get_full_fp32_param

        # DeepSpeed assembles whole masters only: what is to be assembled stands in for them meanwhile.
        kept = [m.detach().clone() for m in self.masters]
        self._put(local)
        whole = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            whole[name] = safe_get_full_fp32_param(parameter).detach().to("cpu", copy=True)
        self._put(kept)
        return whole

    def scatter(self, whole: Mapping[str, Tensor], local: Sequence[Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        kept = [m.detach().clone() for m in self.masters]
        for name, parameter in zip(self.names, self.parameters, strict=True):
            value = whole[name].to(self.world.device)
            if self.stage == 3:
                safe_set_local_fp32_param(parameter, self._share(value))
            else:
                safe_set_full_fp32_param(parameter, value)
        with torch.no_grad():
            found = [m.detach().clone() for m in self.masters]
            self._put(kept)
            for x, value in zip(local, found, strict=True):
                x.copy_(value)

    def _share(self, value: Tensor) -> Tensor:
        """This rank's share of a whole parameter under ZeRO-3: equal pieces of the flat values, padded with zeros.

        DeepSpeed's own setter of whole parameters fails where a rank's piece is nothing but padding.
        """
        size = self.world.size
        piece = -(-value.numel() // size)
        padded = nn.functional.pad(value.flatten(), (0, piece * size - value.numel()))
        return padded[self.world.rank * piece :][:piece]

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for master, value in zip(self.masters, values, strict=True):
                if master is not value:
                    master.data.copy_(value)

    def _loss_scale(self) -> Any:
        return float(self.model.optimizer.loss_scale) if self.config.precision == "fp16" else None

    def _set_loss_scale(self, value: Any) -> None:
        if self.config.precision == "fp16" and isinstance(value, float):
            self.model.optimizer.loss_scaler.cur_scale = value


def _in_half(call: Callable[..., Tensor], dtype: torch.dtype, x: Tensor, condition: Tensor, labels: Any) -> Tensor:
    """A call of a network whose weights DeepSpeed keeps in half precision: accelerate uses no autocast there."""
    return call(x.to(dtype), condition, labels)


@contextlib.contextmanager
def _a_state() -> Iterator[None]:
    """Accelerate's state, which its trackers want before they do anything; made for the moment where no engine did."""
    made = not PartialState._shared_state
    if made:
        PartialState(cpu=True)
    try:
        yield
    finally:
        if made:
            PartialState._reset_state()


def start_tracker(
    name: str, project: str, folder: Path, options: Mapping[str, Any]
) -> tuple[Callable[[Mapping[str, float], int], None], Callable[[], None]]:
    """Starts one of Accelerate's trackers. Returns (log numbers at a step, finish). Only rank 0 calls these."""
    found = LOGGER_TYPE_TO_CLASS[name]
    alone = type(found.__name__, (found,), {"main_process_only": False})  # does not ask who else is there

    def write(numbers: Mapping[str, float], step: int) -> None:
        with _a_state():
            tracker.log(dict(numbers), step=step)

    def finish() -> None:
        with _a_state():
            tracker.finish()

    with _a_state():
        tracker = alone(project, *([folder] if found.requires_logging_directory else []), **options)
        tracker.start()
    return write, finish
