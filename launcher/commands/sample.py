"""`entroloop sample`: one process makes the missing shards of one sample phase.

entroloop sample RUN [--generation g] [--part i::n]

Any number of such processes, for example the tasks of a job array, work on the same phase with different parts. The
same command without a part then finds every shard and seals the phase.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entroloop.data.errors import UserError


def sample_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    generation: Annotated[
        int | None, typer.Option(help="The generation; default the first that is not sampled.")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", "--shard", help="i::n makes only the shards i, i + n, … and seals nothing.")
    ] = None,
) -> None:
    """Make the missing sample shards of a run, without a process group."""
    from entroloop.data.runfolder import Layout, Step
    from entroloop.data.seeds import parse_part
    from entroloop.data.store import manifest
    from entroloop.data.world import join
    from entroloop.launcher.config import saved_with
    from entroloop.launcher.process import StopFlag, check_alone
    from entroloop.launcher.run import runner

    if part is None:  # the tasks of one srun may each make a part
        check_alone(
            "sample", "give each a part (--part i::n), or use entroloop run CONFIG --generation g --phase sample"
        )
    config, layout = saved_with(run), Layout(run)
    mine = parse_part(part) if part is not None else None
    if generation is None:
        left = (g for g in range(config.generations) if not manifest.is_sealed(layout.of(Step(g, "sample"))))
        generation = next(left, None)
    if generation is None:
        print(f"{run}: every generation is sampled")
        return
    step = Step(generation, "sample")
    if 0 <= generation < config.generations and not manifest.is_sealed(layout.of(Step(generation, "train"))):
        raise UserError(f"{run}: generation {generation} is not trained yet: run entroloop run {run}/config.yaml first")
    stop = StopFlag()
    runner.run_single(config, join(0, 1), lambda: bool(stop), step, mine)
