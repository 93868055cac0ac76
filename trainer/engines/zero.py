"""DeepSpeed's ZeRO-1, 2 and 3."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import math
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.utils.cpp_extension import get_default_build_root

from entroloop.data.devices import host_copy
from entroloop.data.errors import UserError
from entroloop.data.world import World
from entroloop.trainer.engines.launch import deepspeed_file
from entroloop.trainer.engines.plain import Engine, Named
from entroloop.trainer.train_config import TrainConfig


def load_extension() -> None:
    """Loads DeepSpeed's extension for CPUs, which is compiled once per machine.

    torch marks a compilation by a file that a killed process leaves behind, and on which every later process would wait
    for ever. So the processes of one machine take turns under a lock that the kernel releases, in a folder of their
    own, and the first thing that each does is to remove such a file.

    The compilation needs the command `ninja`. It is installed beside python, whose folder is not in PATH unless the
    environment is active. A ninja of another version would compile again what was compiled before.
    """
    from deepspeed.comm.torch import build_shm_op

    name, version = f"entroloop-{socket.gethostname()}", f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(get_default_build_root()) / f"{version}_cpu")
    folder = folder if folder.name == name else folder / name
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    first, *others = os.get_exec_path()
    if first != (beside := str(Path(sys.executable).parent)):
        os.environ["PATH"] = os.pathsep.join([beside, first, *others])
    with (folder / "turn").open("w") as turn:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(turn, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            build_shm_op()


class ZeroEngine(Engine):
    """DeepSpeed ZeRO: masters and moments (1), gradients (2) and weights (3) are partitioned over the ranks."""

    fused = False

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

        if self.world.device.type == "cpu":
            load_extension()
        # A second generation in this process needs a fresh plugin. The process group belongs to the World and stays.
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        given = deepspeed_file()
        zero = {"stage3_param_persistence_threshold": 0, **given.get("zero_optimization", {}), "stage": self.stage}
        asked = [
            os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") for what in ("OPTIMIZER", "PARAM")
        ]
        asked += [zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")]
        if any(device != "none" for device in asked):
            raise UserError("zero_optimization.offload_…: this trainer keeps weights and moments on the device")
        plugin = DeepSpeedPlugin(hf_ds_config=self._deepspeed_config({**given, "zero_optimization": zero}))
        backend = InitProcessGroupKwargs(backend="nccl" if self.world.device.type == "cuda" else "gloo")
        return Accelerator(
            deepspeed_plugin=plugin, mixed_precision=self.config.precision, kwargs_handlers=[backend],
            gradient_accumulation_steps=self.passes,
        )  # fmt: skip

    def _deepspeed_config(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The user's configuration with the values that this trainer decides."""
        precisions = {
            name: {**given.get(name, {}), "enabled": self.config.precision == name} for name in ("fp16", "bf16")
        }
        return {
            **given,
            **precisions,
            "train_micro_batch_size_per_gpu": self.micro,
            "gradient_accumulation_steps": self.passes,
            "gradient_clipping": self.config.clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }

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

    def finish_step(self) -> Tensor:
        self.model.step()
        norm = self.model.get_global_grad_norm()
        found = 0.0 if norm is None else float(norm)
        return torch.tensor(found if found >= 0 else math.inf)  # -1 means inf or NaN

    @property
    def reads_later(self) -> bool:
        return False  # DeepSpeed has read it

    def moved(self, norm: float) -> bool:
        return not self.model.optimizer.overflow

    def gather(self, local: Sequence[Tensor]) -> Named:
        from deepspeed.utils import safe_get_full_fp32_param

        # DeepSpeed can assemble its masters only, so `local` replaces the masters until everything is assembled.
        kept = [m.detach().clone() for m in self.masters]
        self._put(local)
        whole = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            full = safe_get_full_fp32_param(parameter)
            if self.world.is_main:
                whole[name] = host_copy(full)
        self._put(kept)
        return whole

    def scatter(self, whole: Mapping[str, Tensor], local: Sequence[Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        kept = [m.detach().clone() for m in self.masters]
        for name, parameter in zip(self.names, self.parameters, strict=True):
            value = self._sent(whole, name)
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

    def _load_weights(self, whole: Named) -> None:
        self.scatter(whole, self.masters)  # with half precision, the network's own weights are rounded

    def _loss_scale(self) -> Any:
        return float(self.model.optimizer.loss_scale) if self.config.precision == "fp16" else None

    def _set_loss_scale(self, value: Any) -> None:
        if self.config.precision == "fp16" and isinstance(value, float):
            self.model.optimizer.loss_scaler.cur_scale = value


def _in_half(call: Callable[..., Tensor], dtype: torch.dtype, x: Tensor, condition: Tensor, labels: Any) -> Tensor:
    """Calls a network whose weights DeepSpeed keeps in half precision. Accelerate uses no autocast in that case."""
    return call(x.to(dtype), condition, labels)
