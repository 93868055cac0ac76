"""The `slurm` section of a configuration: the resources that jobs ask for, and how a run is divided into jobs."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from entroloop.data.config import Section
from entroloop.data.jobs import Needs

KINDS = ("run", "import", "seal", "arm", "report")  # of job, beside the phases of a run

_UNITS = {"m": 1, "h": 60, "d": 24 * 60}


def seconds(time: str) -> int:
    """The length of a time limit in seconds.

    Accepts the forms of `sbatch --time` (`90` or `90:00` minutes, `12:00:00`, `1-12`, `1-12:00`, `1-12:00:00`), and
    `90m`, `12h`, `2d`.
    Raises ValueError for anything else.
    """
    if match := re.fullmatch(r"(\d+)([mhd])", time):
        return int(match[1]) * _UNITS[match[2]] * 60
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time):
        days, *clock = match.groups()
        if days is None and clock[2] is None:  # minutes, or minutes:seconds
            clock = [None, *clock[:2]]
        hours, minutes, rest = (int(part or 0) for part in clock)
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest
    raise ValueError(f"{time}: give a time limit such as 90m, 12h, 2d, 12:00:00 or 1-12:00:00")


class Resources(Section):
    """The resources that a job asks for. null means as in the section above; null there means the cluster's default."""

    partition: str | None = None
    """As `sbatch --partition`."""
    account: str | None = None
    """As `sbatch --account`."""
    qos: str | None = None
    """As `sbatch --qos`."""
    constraint: str | None = None
    """As `sbatch --constraint`."""
    nodes: int | None = Field(None, ge=1)
    """Nodes of one job."""
    gpus_per_node: int | None = Field(None, ge=0)
    """GPUs per node, requested as generic resources; 0 for jobs on CPUs."""
    gpu_type: str | None = None
    """Type of GPU, for example `a100`, if the cluster requires one."""
    processes: int | None = Field(None, ge=1)
    """Processes per node; null: one per GPU, or one."""
    cpus_per_node: int | None = Field(None, ge=1)
    """Processor cores per node, for all its processes together."""
    memory: str | None = None
    """Memory per node, as in sbatch: `64G`; `0` is all memory of the node."""
    time: str | None = None
    """Time limit: `12h`, `90m`, `2d`, or sbatch's own form, `12:00:00`."""
    lines: tuple[str, ...] | None = None
    """Further `#SBATCH` options, for example `--exclusive`."""

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, time: object) -> object:
        if isinstance(time, int):  # minutes for sbatch, seconds for others
            raise ValueError("write time limits as 12h, 90m or 2d, or 12:00:00")
        if isinstance(time, str):
            seconds(time)
        return time

    @field_validator("memory", mode="before")
    @classmethod
    def _memory(cls, memory: object) -> object:
        return str(memory) if isinstance(memory, int) else memory

    @field_validator("partition", "account", "qos", "constraint", "gpu_type", "memory", "lines")
    @classmethod
    def _one_line(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for text in value if isinstance(value, tuple) else (value or "",):
            if "\n" in text or '"' in text:
                raise ValueError("must be one line without double quotes")
            if isinstance(value, tuple) and not text.startswith("--"):
                raise ValueError(f"{text}: give options as sbatch takes them, for example --exclusive")
        return value

    @property
    def ranks_per_node(self) -> int:
        return self.processes or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Number of processes on all nodes together."""
        return (self.nodes or 1) * self.ranks_per_node


class SlurmConfig(Resources):
    """How a run uses a SLURM cluster. All of it may change while the run is under way."""

    nodes: int = Field(1, ge=1)
    """Nodes of one job."""
    gpus_per_node: int = Field(1, ge=0)
    """GPUs per node, requested as generic resources; 0 for jobs on CPUs."""
    time: str = "24h"
    """Time limit: `12h`, `90m`, `2d`, or sbatch's own form, `12:00:00`."""
    shape: Literal["generations", "phases"] = "generations"
    """`generations`: one job does whole generations on all its nodes; `phases`: a chain with one job per phase."""
    phases: dict[str, Resources] = Field({})
    """Other resources for single kinds of job: a phase, or run, import, seal, arm (one run of a sweep), report."""
    array: int = Field(8, ge=1)
    """Number of tasks of an array (sampling, encoding)."""
    at_once: int | None = Field(None, ge=1)
    """Tasks of an array that may run at the same time; null sets no limit."""
    import_array: int = Field(1, ge=1)
    """Number of tasks that import the source and encode the real images; 1: a single job."""
    window: int = Field(64, ge=1)
    """Largest number of jobs and array tasks of the run that are queued at once; the chain continues itself."""
    retries: int = Field(2, ge=0)
    """Number of times that a failed job or array task is queued again before the chain stops. A time limit is not a
    failure."""
    lead: int = Field(300, ge=1)
    """Seconds before the time limit at which a job saves its state and queues itself again."""
    seal_wait: int = Field(120, ge=0)
    """Seconds that a job waits until its predecessor's seal is visible on its node."""
    overlap: bool = True
    """Encode every shard as soon as it is sampled (shape `generations`)."""
    setup: tuple[str, ...] = ()
    """Shell lines that select the `python` with entroloop: modules, conda, virtual environments."""
    prefix: str = ""
    """Text before every python command, for example `apptainer exec --nv image.sif`."""
    python: str = "python"
    """The python command itself."""
    scratch: str | None = None
    """Folder on a node's own disk to which training shards are copied first; may use shell variables."""

    @model_validator(mode="after")
    def _fits(self) -> SlurmConfig:
        if self.shape == "phases" and self.window < self.array + 1:
            raise ValueError(f"window={self.window} has no room for an array and its seal: at least {self.array + 1}")
        for kind, wanted in {"most": self, **self.phases}.items():
            if self.lead >= seconds(wanted.time or self.time):
                raise ValueError(f"lead={self.lead} seconds is not below the time limit of {kind} jobs")
        return self

    def of(self, kind: str, needs: Needs = "all") -> Resources:
        """Resources of a job of that kind: the value in `phases`, else what the job needs, else the section's value."""
        mine = {name: getattr(self, name) for name in Resources.model_fields}
        if needs != "all":
            mine["nodes"] = 1
        if needs in ("cpu", "one"):  # a cluster without GPUs takes no --gres
            mine |= {"processes": 1, "gpus_per_node": 0 if needs == "cpu" else min(1, self.gpus_per_node)}
        override = self.phases.get(kind, Resources())
        mine |= {name: value for name in Resources.model_fields if (value := getattr(override, name)) is not None}
        if not mine["gpus_per_node"]:
            mine["gpu_type"] = None
        return Resources(**mine)
