"""The commands `entroloop slurm …`: submit, script and cancel, and two commands that the jobs of a sweep call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.data import files
from entroloop.data.errors import Failed
from entroloop.data.wording import counted
from entroloop.launcher.commands.common import JOBS, PHASES, ConfigFile, Overrides, one_of

app = typer.Typer(name="slurm", help="Run on a SLURM cluster.", no_args_is_help=True)


@app.command("submit")
def submit_command(config: ConfigFile, overrides: Overrides = None) -> None:
    """Submit the jobs of a run that are not done, queued or running."""
    from entroloop.launcher.config import load
    from entroloop.launcher.submit import submit_run
    from entroloop.slurm.submit import said

    settings = load(config, overrides or [])
    print(said(submit_run(settings), settings.run_folder))


@app.command("script")
def script_command(
    config: ConfigFile,
    overrides: Overrides = None,
    phase: Annotated[str | None, typer.Option(help="Only jobs of this kind.", **one_of((*PHASES, *JOBS)))] = None,
) -> None:
    """Print the scripts of the jobs that are not done, without submitting or writing anything."""
    from entroloop.launcher.config import load
    from entroloop.launcher.submit import scripts

    print(scripts(load(config, overrides or []), phase))


@app.command("cancel")
def cancel_command(run: Annotated[Path, typer.Argument(help="Folder of a run or sweep.", show_default=False)]) -> None:
    """Cancel the queued and running jobs of a run or sweep. Sealed results stay; submit again to resume."""
    from entroloop.slurm.sbatch import site_of
    from entroloop.slurm.submit import cancel

    files.check_folder(run)
    numbers = cancel(site_of(run).mark)
    print(
        f"cancelled {counted(len(numbers), 'job')}: {' '.join(numbers)}" if numbers else "nothing is queued or running"
    )


@app.command("arm", hidden=True)
def arm_command(
    config: ConfigFile,
    index: Annotated[int, typer.Argument(help="Number of the arm in the grid.")],
    shared: Annotated[bool, typer.Option(help="Run only the steps that other arms share.")] = False,
    state: Annotated[Path | None, typer.Option(help="Write the state.json of this attempt to this file.")] = None,
    scratch: Annotated[Path | None, typer.Option(help="Node-local folder for training shards.")] = None,
) -> None:
    """Run one arm of a sweep, with shared steps linked from its leader (called by the jobs)."""
    from entroloop.launcher import sweep
    from entroloop.launcher.process import StopFlag, world_from_environment
    from entroloop.launcher.run import runner

    _, arms = sweep.arms_of(config, [])
    arm, stop = arms[index], StopFlag()
    world = world_from_environment(should_stop=stop)
    world.on_main(lambda: sweep.link_shared(arm))  # this arm makes the steps that the leader lacks, with the same bytes
    until = sweep.furthest_shared(arm, arms) if shared else None
    attempt = runner.Attempt(state, scratch=scratch, overlap=arm.config.slurm.overlap)
    settings = sweep.while_shared(arm, arms)
    runner.run(settings, world, stop, until=until, attempt=attempt)


@app.command("conclude", hidden=True)
def conclude_command(config: ConfigFile) -> None:
    """Write the report of a sweep over all arms with an evaluated generation (called by the last job)."""
    from entroloop.data.runfolder import Step
    from entroloop.eval.report import page
    from entroloop.launcher import sweep
    from entroloop.launcher.run import retention
    from entroloop.launcher.run.recipes import is_sealed, next_step

    base, arms = sweep.arms_of(config, [])
    shown = [arm for arm in arms if is_sealed(arm.layout)(Step(0, "evaluate"))]
    unfinished = [arm for arm in arms if next_step(is_sealed(arm.layout), arm.config.generations) is not None]
    if shown:
        page.write([arm.layout.run for arm in shown], base.run_folder / "report.html")
    for arm in arms if not unfinished else []:
        retention.apply(arm.config, arm.layout)
    if unfinished:
        names = ", ".join(arm.config.name for arm in unfinished)
        raise Failed(f"{len(unfinished)} of {len(arms)} runs did not finish: {names}: submit the sweep again")
