"""Submits the missing jobs of a run or a sweep to SLURM's queue.

Config  ->  jobs (plain records)  ->  entroloop.slurm: scripts and the queue
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import which
from typing import Any

from entroloop.data import files, yaml12
from entroloop.data.jobs import Job
from entroloop.launcher.config import Config
from entroloop.launcher.jobs import jobs_of, sweep_jobs
from entroloop.launcher.run.lease import Lease
from entroloop.launcher.run.resume import open_run
from entroloop.launcher.sweep import arms_of
from entroloop.slurm import client, sbatch, submit
from entroloop.slurm.sbatch import Site, site_of
from entroloop.slurm.submit import Plan, check_python


def submit_run(config: Config) -> Plan:
    """Submits the missing jobs of a run. Raises UserError when its folder belongs to another configuration."""
    _check_cluster(config)
    layout = open_run(config)
    _write(layout.run, config.settled(), config)
    site, file = site_of(layout.run, config.threads), _submitted(layout.run)
    return _submit(lambda: jobs_of(config, file), config, site, ("slurm", "submit", file))


def submit_sweep(path: Path, overrides: Sequence[str]) -> tuple[Plan, Path]:
    """Submits the missing jobs of a sweep: work that arms share, an array over the arms, and the report.

    Returns the plan that was carried out, and the sweep's folder.
    """
    base, arms = arms_of(path, overrides)
    _check_cluster(base)
    for arm in arms:
        open_run(arm.config)
    _write(base.run_folder, base.model_dump(mode="json"), base)
    site, file = site_of(base.run_folder, base.threads), _submitted(base.run_folder)
    return _submit(lambda: sweep_jobs(base, arms, file), base, site, ()), base.run_folder


def scripts(config: Config, kind: str | None = None) -> str:
    """The scripts of the jobs that are not done, of one kind or all. Raises UserError when there are none."""
    jobs = jobs_of(config, _submitted(config.run_folder))
    return sbatch.scripts(jobs, config.slurm, site_of(config.run_folder, config.threads), kind)


def _check_cluster(config: Config) -> None:
    """Raises UserError when jobs would start another Python, or no queue answers. Called before a folder is made."""
    check_python(config.slurm, which(config.slurm.python), sys.executable)
    client.queued(site_of(config.run_folder).mark)


def _submitted(run: Path) -> str:
    """Path of the configuration that the jobs read."""
    return str(run.absolute() / "slurm" / "submitted.yaml")


def _write(run: Path, values: dict[str, Any], config: Config) -> None:
    text = yaml12.text_of({**values, "folder": str(config.run_folder.parent.absolute())}).encode()
    files.put(Path(_submitted(run)), text)


def _submit(jobs: Callable[[], list[Job]], config: Config, site: Site, extend: tuple[str, ...]) -> Plan:
    """Submits under a lease. A second submitter waits for the lease, then finds the first submitter's jobs."""
    with Lease(site.folder / ".lease-submit", "submitting", patience=180):
        return submit.submit(jobs(), config.slurm, site, extend=extend)
