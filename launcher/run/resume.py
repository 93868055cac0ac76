"""Decides whether a run's folder may be continued with a configuration.

    configuration, sealed recipes  ->  open_run  ->  the run's folder, or one line with the keys that differ
    recipe, unsealed files         ->  claim     ->  only unsealed files of this recipe

A changed configuration is accepted if and only if no sealed step's recipe changes. Unsealed files of a step that was
begun under another recipe are removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, Step, read_config
from entroloop.data.store import manifest
from entroloop.launcher.config import Config, dump, validated
from entroloop.launcher.explain import differences
from entroloop.launcher.run import fork
from entroloop.launcher.run.lease import Lease
from entroloop.launcher.run.phases import BY_NAME
from entroloop.launcher.run.recipes import is_sealed, next_step, recipes, steps

log = logging.getLogger(__name__)
PATIENCE = 60.0  # seconds that a part waits while another part removes the files of another recipe


def open_run(config: Config) -> Layout:
    """Creates the run's folder with its configuration, or opens it if this configuration would seal the same bytes.

    A configuration that differs from the saved configuration replaces it. Raises UserError, which shows the difference,
    where the recipe of a sealed step would change. Raises InUse where a process is at work on a step whose recipe would
    change.
    """
    layout = Layout(config.run_folder)
    if not layout.config.exists():
        check_folder(config, layout)
        if config.forked_from.generation is None:
            files.create(layout.config, lambda file: file.write(dump(config)))
        else:
            fork.begin(config, layout)
    check_sealed(config, layout)
    saved = read_saved(layout)
    if saved.settled() == config.settled():
        return layout
    with contextlib.ExitStack() as stack:
        before, now = recipes(saved), recipes(config)
        if any(before[step] != now[step] for step in before.keys() & now.keys()):
            ahead = next_step(is_sealed(layout), config.generations)
            free = {layout.lease(ahead)} if ahead else set()  # no process may be at work or begin meanwhile
            for path in sorted(free.union(layout.all_leases())):
                stack.enter_context(Lease(path, "saving another configuration"))
            check_sealed(config, layout)
        if found := differences(saved.deciding(), config.deciding()):
            log.warning("%s: goes on with another configuration: %s", layout.run, "; ".join(found))
        try:
            files.put(layout.config, dump(config))
        except UserError:  # a finished run may be on a read-only disk, also at another path than when it was made
            if next_step(is_sealed(layout), config.generations) is not None:
                raise
    return layout


def read_saved(layout: Layout) -> Config:
    """The configuration saved with a run. Raises UserError where there is none or its format differs."""
    return validated(read_config(layout), f"{layout.config}: not a configuration of this version")


def check_folder(config: Config, layout: Layout) -> None:
    """Raises UserError where the run cannot begin in its folder, or not go on there with this configuration."""
    if layout.config.exists():
        check_sealed(config, layout)
        return
    if layout.run.is_file():
        raise UserError(f"{layout.run}: is a file, not a run folder: choose another name= or folder=")
    here = list(layout.run.iterdir()) if layout.run.is_dir() else []
    if any(not path.name.startswith(".") for path in here):
        sweep = any((path / layout.config.name).is_file() for path in here)
        what = "a sweep, not a single run" if sweep else f"not a run (no {layout.config.name}), and holds other files"
        raise UserError(f"{layout.run}: is {what}: choose another name= or folder=")


def check_sealed(config: Config, layout: Layout, only: Step | None = None) -> None:
    """Raises UserError where a sealed step, or `only` if given, has another recipe than this configuration gives."""
    saved, mine = read_saved(layout), recipes(config)
    theirs, ours = ((c.forked_from.generation, c.forked_from.digest) for c in (saved, config))
    if theirs != ours:
        raise UserError(
            f"{layout.run}: forked from {_fork_of(saved)} there, from {_fork_of(config)} here: go on with "
            f"entroloop run {layout.config}, or give another name="
        )
    fork.check(config, layout)
    for step in steps(max(saved.generations, config.generations)) if only is None else [only]:
        if not manifest.is_sealed(layout.of(step)):
            continue
        if step not in mine or manifest.read(layout.of(step)).made_from.get("recipe") != mine[step]:
            fewer = differences({"generations": saved.generations}, {"generations": config.generations})
            found = fewer if step not in mine else differences(saved.deciding(), config.deciding())
            raise UserError(
                f"{layout.run}: {step} is sealed by another configuration: "
                f"{'; '.join(found) or 'config.yaml was edited since'}: give the same values, or another name="
            )


def _fork_of(config: Config) -> str:
    about = config.forked_from
    return "no run" if about.generation is None else f"generation {about.generation} of {about.run}"


def check_saved(config: Config, layout: Layout, step: Step) -> None:
    """Raises UserError where another process has saved a configuration under which the step's recipe differs."""
    saved = read_saved(layout)
    if saved.settled() != config.settled() and recipes(saved).get(step) != recipes(config)[step]:
        found = "; ".join(differences(saved.deciding(), config.deciding()))
        raise UserError(f"{layout.run}: another process changed the configuration: {found}")


def claim(layout: Layout, step: Step, recipe: str) -> None:
    """Removes a step's unsealed files if they were begun under another recipe.

    Raises InUse where another process is at work on the step under another recipe.
    """
    marker = layout.recipe(step)
    if not _begun_otherwise(marker, recipe):
        return
    with contextlib.ExitStack() as stack:
        alone = layout.generation(step.generation) / f".starting-over-{step.phase}"
        stack.enter_context(Lease(alone, f"starting {step} over", PATIENCE))
        if not _begun_otherwise(marker, recipe) or manifest.is_sealed(layout.of(step)):
            return
        for path in layout.leases(step):
            stack.enter_context(Lease(path, str(step)))
        log.info("%s: begun with another configuration, starts over", step)
        _forget(layout.stats(step.generation), step.phase)
        start_over(marker, recipe, [layout.of(step), *BY_NAME[step.phase].begins(layout, step.generation)])


def start_over(marker: Path, recipe: str, folders: Iterable[Path]) -> None:
    """Removes the folders if the marker names another recipe. The marker then names this recipe."""
    if _begun_otherwise(marker, recipe):
        for folder in filter(Path.exists, folders):
            shutil.rmtree(folder)
        files.put(marker, recipe.encode())


def _begun_otherwise(marker: Path, recipe: str) -> bool:
    files.create(marker, lambda file: file.write(recipe.encode()))
    return marker.read_text() != recipe


def _forget(stats: Path, phase: str) -> None:
    """Removes a phase's lines of statistics."""
    if stats.exists():
        every = (value for _, value in files.json_lines(stats) if isinstance(value, dict))
        kept = [json.dumps(value) for value in every if value.get("phase") != phase]
        files.put(stats, "".join(f"{line}\n" for line in kept).encode())
