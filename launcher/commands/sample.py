"""`entroloop sample`: one process makes the missing shards of one sample phase, or draws new samples into a file.

entroloop sample RUN [--generation g] [--part i::n]
entroloop sample RUN --count N [--generation g] [--seed s] --out grid.png|FOLDER|x.npz

Any number of such processes, for example the tasks of a job array, work on the same phase with different parts. The
same command without a part then finds every shard and seals the phase.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from entroloop.data.errors import UserError
from entroloop.launcher.commands.common import Quiet, Verbose, part_option


def sample_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    generation: Annotated[
        int | None,
        typer.Option(help="Default: the first that is not sampled; with --count the last that is trained."),
    ] = None,
    part: Annotated[
        Any, part_option("--part", "--shard", help="i::n makes only the shards i, i + n, … and seals nothing.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Draw so many new samples; the run stays as it is.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="With --count; default the run's seed + 1, for other samples than its own."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --count: a .png for a grid, a .npz for arrays, or a new folder of images.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make the missing sample shards of a run, without a process group, or draw new samples (--count)."""
    from entroloop.data.runfolder import Layout, Step
    from entroloop.data.store import manifest
    from entroloop.data.world import join
    from entroloop.launcher.config import saved_with
    from entroloop.launcher.process import StopFlag, check_alone
    from entroloop.launcher.run import runner

    if count is not None:
        if part is not None or out is None:
            raise UserError("--count: draws new samples: give --out, and no --part")
        _draw(run, generation, count, seed, out)
        return
    if seed is not None or out is not None:
        raise UserError(f"{'--seed' if out is None else '--out'}: goes with --count, for new samples")
    if part is None:  # the tasks of one srun may each make a part
        check_alone(
            "sample", "give each a part (--part i::n), or use entroloop run CONFIG --generation g --phase sample"
        )
    config, layout = saved_with(run), Layout(run)
    if generation is None:
        left = (g for g in range(config.generations) if not manifest.is_sealed(layout.of(Step(g, "sample"))))
        generation = next(left, None)
    if generation is None:
        print(f"{run}: every generation is sampled")
        return
    step = Step(generation, "sample")
    if 0 <= generation < config.generations and not manifest.is_sealed(layout.of(Step(generation, "train"))):
        raise UserError(f"{run}: generation {generation} is not trained yet: run entroloop run {run}/config.yaml first")
    runner.run_single(config, join(0, 1), StopFlag(), step, part)


def _draw(folder: Path, generation: int | None, count: int, seed: int | None, out: Path) -> None:
    from entroloop.launcher import api
    from entroloop.launcher.new_samples import check_out, write
    from entroloop.launcher.process import check_alone

    check_alone("sample --count", "start it once")
    run = api.load_run(folder)
    check_out(out, run.real().shape)
    seed = run.config.seed + 1 if seed is None else seed
    write(api.drawn(run, count, seed, generation=generation, show=True), count, out)
    print(f"{out}: {count} new samples, seed {seed}")
