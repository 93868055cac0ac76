"""This process's place among the ranks, from the variables of torchrun, accelerate and srun; and its stop signals.

The first rule that applies decides. docs/clusters.md shows the rules as a table.

1. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which torchrun and accelerate set together.
2. A step that srun started with more than one task. SLURM_NTASKS without a step means the shell of an allocation.
3. Otherwise the process is alone.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from types import FrameType

import torch

from entroloop.data.errors import UserError
from entroloop.data.rendezvous import meet
from entroloop.data.world import World, join

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
MASTER = ("MASTER_ADDR", "MASTER_PORT")
STEP = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # Open MPI; MPICH and Intel MPI; MVAPICH
MOST = 2**20  # ranks
FIRST_PORT, PORTS = 12000, 8000  # for srun's steps: below the ports of outgoing connections and of the job scripts


@dataclass(frozen=True)
class Place:
    """Rank `rank` of `size`, number `local_rank` on its machine; the ranks meet at `address`, port `port`.

    agent   whether torchrun's agent, not rank 0, runs the store at that port
    name    distinguishes the worlds of two jobs, or of two attempts, that meet at the same port
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    agent: bool = False
    name: str = ""


def place(environment: Mapping[str, str]) -> Place:
    """This process's place by these variables. Raises UserError when they are empty, incomplete or contradictory."""
    empty = [name for name in (*RANKS, *MASTER, *STEP) if not environment.get(name, "-").strip()]
    if empty:
        raise UserError(f"environment: {empty[0]} is set and empty: unset it")
    if any(name in environment for name in RANKS):
        return _by_torchrun(environment)
    if _integer(environment, "SLURM_STEP_NUM_TASKS", 1) > 1 and not _is_shell(environment):
        return _by_srun(environment)
    for name in MPI:
        if _integer(environment, name, 1) > 1:
            raise UserError(
                f"environment: {name}={environment[name]}: an MPI launcher makes no ranks here: start with torchrun "
                f"or srun, or unset {name}"
            )
    if "MASTER_ADDR" in environment and any(name.startswith("ACCELERATE_") for name in environment):
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu and where "
            "there is no GPU: use torchrun, or ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"
        )
    return Place()


def _by_torchrun(environment: Mapping[str, str]) -> Place:
    missing = [name for name in (*RANKS, *MASTER) if name not in environment]
    if missing:
        there = ", ".join(f"{name}={environment[name]}" for name in RANKS if name in environment)
        raise UserError(
            f"environment: {there} without {', '.join(missing)}: start with torchrun, accelerate launch or srun, or "
            f"unset {', '.join(name for name in RANKS if name in environment)}"
        )
    size, local = _within(environment, "WORLD_SIZE", 1, MOST), _within(environment, "LOCAL_RANK", 0, MOST)
    rank, port = _within(environment, "RANK", 0, size - 1, f"below WORLD_SIZE={size}"), _port(environment)
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    again = environment.get("TORCHELASTIC_RESTART_COUNT", "0")  # the agent keeps its store when it restarts its ranks
    return Place(rank, size, local, environment["MASTER_ADDR"], port, agent, name=again)


def _is_shell(environment: Mapping[str, str]) -> bool:
    """Whether this process is no task of a step: there is no step, or it is an interactive shell (`srun --pty`)."""
    return "SLURM_STEP_ID" not in environment or "SLURM_PTY_PORT" in environment


def _by_srun(environment: Mapping[str, str]) -> Place:
    size = _within(environment, "SLURM_STEP_NUM_TASKS", 1, MOST)
    if _integer(environment, "SLURM_NTASKS", size) != size:  # srun sets both
        raise UserError(
            f"environment: SLURM_STEP_NUM_TASKS={size} is left over from the step of another job (SLURM_NTASKS="
            f"{environment['SLURM_NTASKS']}): unset SLURM_STEP_ID, or start with srun"
        )
    rank = _within(environment, "SLURM_PROCID", 0, size - 1, f"below SLURM_STEP_NUM_TASKS={size}")
    local = _within(environment, "SLURM_LOCALID", 0, MOST)
    job, step = _integer(environment, "SLURM_JOB_ID"), _integer(environment, "SLURM_STEP_ID")
    address = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
    port = _port(environment) if "MASTER_PORT" in environment else FIRST_PORT + (8 * job + step) % PORTS
    return Place(rank, size, local, address, port, name=f"{job}.{step}")


def first_host(hosts: str) -> str:
    """The first name of a list as SLURM writes it: `n[03-04,7],m1` -> `n03`. Raises UserError when there is none."""
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]+\])+", hosts)
    if first is None:
        raise UserError(f"environment: SLURM_STEP_NODELIST={hosts}: names no host: set MASTER_ADDR to that of rank 0")
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", first[0])


def _integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise UserError(f"environment: {name}{'' if text is None else f'={text[:40]}'}: must be an integer")
    return int(text)


def _within(environment: Mapping[str, str], name: str, least: int, most: int, limit: str = "") -> int:
    """The integer of a variable, from `least` to `most`. The error says `limit` for `most`, if it is given."""
    value = _integer(environment, name)
    if not least <= value <= most:
        raise UserError(f"environment: {name}={value}: must be from {least} to {limit or most}")
    return value


def _port(environment: Mapping[str, str]) -> int:
    return _within(environment, "MASTER_PORT", 1, 2**16 - 1)


def world_from_environment(
    environment: MutableMapping[str, str] = os.environ,
    *,
    device: torch.device | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> World:
    """The World this process was started in. Joins the process group where there is more than one rank.

    Writes the process's place into the environment as torchrun does, for accelerate and DeepSpeed. LOCAL_RANK is then
    the number of the device: 0 where the process sees only one device. With `device`, this rank computes there instead.
    A GPU proves here that its products are exact enough for selection: a refusal comes before any work.

    Waits for the other ranks for ENTROLOOP_JOIN_SECONDS (300); one that hangs later ends those that wait for it after
    ENTROLOOP_PEER_SECONDS (300). Raises UserError when the variables contradict each other, the port is taken or a
    GPU's products are not exact enough, Failed when the time is over, and Interrupted when `should_stop` returns true.
    """
    seconds, silence = (_seconds(environment, f"ENTROLOOP_{name}_SECONDS") for name in ("JOIN", "PEER"))
    mine = place(environment)
    device = _device(mine) if device is None else device
    store = None
    if mine.size > 1:
        store = meet(
            mine.address, mine.port, mine.rank, mine.size, serves=mine.rank == 0 and not mine.agent, name=mine.name,
            seconds=seconds, should_stop=should_stop,
        )  # fmt: skip
        local = mine.local_rank if device.index is None else device.index
        environment.update(
            RANK=str(mine.rank), WORLD_SIZE=str(mine.size), LOCAL_RANK=str(local), MASTER_ADDR=mine.address,
            MASTER_PORT=str(mine.port),
        )  # fmt: skip
        environment.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # accelerate chooses another number
    world = join(mine.rank, mine.size, mine.local_rank, device=device, store=store, silence=silence)
    if world.device.type == "cuda":
        from entroloop.selection.exact.canary import prove_gpu  # only a GPU needs it

        prove_gpu(world)
    return world


def _device(mine: Place) -> torch.device:
    """The only CUDA device this rank sees, or the device of its local number; the CPU where there is no CUDA device."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen == 0:
        return torch.device("cpu")
    if seen > 1 and mine.local_rank >= seen:
        raise UserError(
            f"environment: rank {mine.rank} is number {mine.local_rank} on its machine and sees {seen} devices: start "
            "at most one process per device"
        )
    return torch.device("cuda", mine.local_rank if seen > 1 else 0)


def _seconds(environment: Mapping[str, str], name: str) -> float:
    text = environment.get(name, "300")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"environment: {name}={text}: must be a number of seconds above 0")
    return seconds


def check_alone(command: str, instead: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError with the advice `instead` where this process is one of several ranks."""
    size = place(environment).size
    if size > 1:
        raise UserError(f"entroloop {command} works alone and was started as {size} ranks: {instead}")


class StopFlag:
    """SIGTERM, SIGINT and SIGUSR1 set this flag. Long phases check it between steps and stop resumably.

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

    def __call__(self) -> bool:
        return self.signal is not None
