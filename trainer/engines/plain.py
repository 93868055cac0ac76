"""One process, or DDP: every rank holds whole weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from entroloop.data.devices import host_copy
from entroloop.data.errors import UserError
from entroloop.data.wording import counted
from entroloop.data.world import World
from entroloop.trainer.train_config import TrainConfig, micro_batches

Named = dict[str, Tensor]
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's, by the keys of the optimizer's state


class Engine:
    """One process, or DDP: every rank holds whole weights, moments and averages."""

    fused = True  # AdamW updates in one kernel and keeps its step count on the device

    def __init__(self, config: TrainConfig, network: nn.Module, world: World) -> None:
        self.config, self.world, self.network = config, world, network
        self.micro, self.passes = micro_batches(config, world.size)
        self.names = [name for name, _ in network.named_parameters()]
        self.shapes = {name: p.shape for name, p in network.named_parameters()}
        self.parameters = list(network.parameters())  # once: walking the modules takes as long as updating an average
        self.accelerator = self._accelerator()
        if self.accelerator.num_processes != world.size:
            raise UserError(
                f"accelerate counts {counted(self.accelerator.num_processes, 'process')}, the launcher {world.size}: "
                "start with torchrun, or with accelerate launch --multi_gpu (ACCELERATE_USE_CPU=true on a CPU)"
            )
        network.to(world.device)
        fused = {"fused": True} if self.fused else {}
        optimizer = torch.optim.AdamW(
            network.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, **fused
        )
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self._check()
        self.call = torch.compile(self.model) if config.compile else self.model

    @property
    def kind(self) -> str:
        return "ddp" if self.world.size > 1 else "single"

    def _accelerator(self) -> Accelerator:
        cpu = self.world.device.type == "cpu"
        AcceleratorState._reset_state()  # an earlier training in this process may have had another precision
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # gradients are views of the reduced buckets
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
        """The context of one forward and backward pass. Only the last of a step's `passes` reduces the gradients."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Backpropagates the mean loss of one pass's micro-batch."""
        self.accelerator.backward(loss / self.passes)

    def finish_step(self) -> Tensor:
        """Clips and updates. Returns the gradient's norm, a scalar on the device, the same on every rank."""
        norm: Tensor = self.accelerator.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @property
    def reads_later(self) -> bool:
        """Whether the norm of a step may be read after the next step has begun, so that a GPU need not wait."""
        return self.world.device.type == "cuda" and self.config.precision != "fp16"

    def moved(self, norm: float) -> bool:
        """Whether the step with this norm changed the weights.

        An fp16 overflow skips the step. In any other precision a non-finite norm means the update was applied and the
        weights are ruined.
        """
        # With a fused optimizer accelerate cannot see that the gradient scaler skipped a step.
        return self.config.precision != "fp16" or math.isfinite(norm)

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def gather(self, local: Sequence[Tensor]) -> Named:
        """Assembles tensors like `masters` into whole tensors by parameter name. Every rank calls it.

        Only rank 0 gets and keeps them: copies as `devices.host_copy` makes them. The other ranks get {}.
        """
        return dict(zip(self.names, map(host_copy, local), strict=True)) if self.world.is_main else {}

    def scatter(self, whole: Mapping[str, Tensor], local: Sequence[Tensor]) -> None:
        """Copies rank 0's whole tensors into tensors like `masters`. Every rank calls it."""
        for name, x in zip(self.names, local, strict=True):
            x.copy_(self._sent(whole, name))

    def _sent(self, whole: Mapping[str, Tensor], name: str) -> Tensor:
        """Rank 0's whole tensor of one parameter, on the device of every rank."""
        device = self.world.device
        return self.world.broadcast(
            whole[name].to(device) if self.world.is_main else torch.empty(self.shapes[name], device=device)
        )

    # -- the state that a checkpoint holds -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Weights, Adam's moments and step count, and fp16's loss scale. Every rank calls it; see `gather`."""
        optimizer, keys = self.adam
        held = [(optimizer.state[key], master) for key, master in zip(keys, self.masters, strict=True)]
        return {
            "weights": self.gather(self.masters),
            **{moment: self.gather([s[moment].view_as(master) for s, master in held]) for moment in _MOMENTS},
            "steps": float(held[0][0]["step"]),
            "loss_scale": self._loss_scale(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a state, of which only rank 0 needs the tensors. Every rank calls it.

        The network's own weights must be loaded before the engine is made.
        """
        self._load_weights(state.get("weights", {}))
        optimizer, keys = self.adam
        for key, master in zip(keys, self.masters, strict=True):
            step = torch.tensor(state["steps"], dtype=torch.float32, device=master.device if self.fused else "cpu")
            optimizer.state[key] = {"step": step, **{moment: torch.zeros_like(master) for moment in _MOMENTS}}
        for moment in _MOMENTS:
            self.scatter(state.get(moment, {}), [optimizer.state[key][moment] for key in keys])
        self._set_loss_scale(state["loss_scale"])

    def _load_weights(self, whole: Named) -> None:
        """The masters are the network's own weights, which are loaded already."""

    def _loss_scale(self) -> Any:
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def _set_loss_scale(self, value: Any) -> None:
        if value is not None and self.accelerator.scaler is not None and isinstance(value, dict):
            self.accelerator.scaler.load_state_dict(value)

    def close(self) -> None:
        """Lets go of the network and the optimizer. Nothing else of the engine may be used afterwards."""
        for wrapped in ("forward", "_original_forward"):  # accelerate's, bound to the network, so a circle
            self.network.__dict__.pop(wrapped, None)
        self.parameters = []
        self.model = self.optimizer = self.network = self.call = None  # type: ignore[assignment]
        self.accelerator.free_memory()
