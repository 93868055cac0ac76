"""This process's place among others, from what torchrun, accelerate and SLURM set; and the wish to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import FrameType

from entroloop.data.errors import UserError
from entroloop.data.world import World, join


def world_from_environment(environment: Mapping[str, str] = os.environ) -> World:
    """The World this process was started in; joins the process group where there is more than one rank.

    torchrun and accelerate set RANK, WORLD_SIZE and LOCAL_RANK; a bare `srun` sets SLURM_PROCID, SLURM_NTASKS and
    SLURM_LOCALID, which count only with MASTER_ADDR, since an array task or an interactive job has them too.
    Raises UserError when the variables contradict each other.
    """
    if "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "MASTER_ADDR" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        if "MASTER_ADDR" in environment and any(name.startswith("ACCELERATE_") for name in environment):
            raise UserError(
                "accelerate launch was asked for several processes and started one, as it does with --cpu and where "
                "there is no GPU: use torchrun, or ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"
            )
        return join(0, 1)
    try:
        rank, size, local_rank = (int(environment.get(name, "0")) for name in names)
    except ValueError as error:
        raise UserError(f"environment: {', '.join(names)} must be integers ({error})") from error
    if not 0 <= rank < size:
        raise UserError(f"environment: {names[0]}={rank} is not below {names[1]}={size}")
    if size > 1 and "MASTER_ADDR" not in environment:
        raise UserError(f"environment: {names[1]}={size} without MASTER_ADDR: start with torchrun or accelerate launch")
    return join(rank, size, local_rank)


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; long phases look at it between steps and end resumably.

    A second SIGINT stops at once, as people expect of Ctrl-C.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(name, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def __bool__(self) -> bool:
        return self.signal is not None
