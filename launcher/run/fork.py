"""Runs that have sealed steps of another run: hard links to the folders of one step, and forks.

    run, k, configuration  ->  forked  ->  a configuration with the section `forked_from`
    that configuration     ->  begin   ->  a run that has generations 0 to k of the other run

`resume.py` calls `begin` and `check`, so every command that opens a run can begin a fork, and checks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entroloop.data import files
from entroloop.data.errors import UserError, reason
from entroloop.data.paths import expanded
from entroloop.data.runfolder import PREPARE, Layout, Step, read_config
from entroloop.data.store import manifest
from entroloop.launcher.config import Config, dump, validated
from entroloop.launcher.explain import differences
from entroloop.launcher.fork_config import ForkedFrom
from entroloop.launcher.run.recipes import inputs, is_sealed, recipes, steps
from entroloop.selection.pool import pool_of


def link(source: Layout, target: Layout, step: Step) -> None:
    """Gives a run the sealed folder of another run's step. Hard links replace copies within a file system."""
    folders = [source.of(step)]
    if step == PREPARE:
        folders = [source.images, source.classifier, *folders]
    for folder in folders:
        if manifest.is_sealed(folder):
            manifest.copy_sealed(folder, target.run / folder.relative_to(source.run))


def digest_of(layout: Layout, generation: int) -> str:
    """Digest of all seals up to a generation. Raises UserError, naming the folder, when one is missing or damaged."""
    return files.digest({str(step): manifest.read(layout.of(step)).digest for step in steps(generation + 1)})


def parse(text: str) -> tuple[Path, int]:
    """`RUN@k` -> the folder and k. Raises UserError."""
    run, at, generation = text.rpartition("@")
    if not (run and at and generation.isdecimal()):
        raise UserError(f"sweep.fork={text}: give RUN@k, for example runs/digits@2")
    return Path(expanded(run)), int(generation)


def forked(config: Config, run: Path, generation: int) -> Config:
    """The configuration of a fork: generations 0 to `generation` of `run`, later ones by `config`.

    Raises UserError when the run has not sealed these generations, has removed files that later generations read, or
    differs in a key that generation `generation` + 1 cannot change.
    """
    source = Layout(run)
    before = validated(read_config(source), f"{source.config}: not a configuration of this version")
    unsealed = next((step for step in steps(generation + 1) if not is_sealed(source)(step)), None)
    if unsealed:
        raise UserError(f"--generation {generation}: {run} has not sealed {unsealed}: give an earlier generation")
    if config.generations <= generation + 1:
        raise UserError(
            f"generations={config.generations}: generation {generation + 1} is the first new one: give "
            f"generations={generation + 2} or more"
        )
    saved = before.model_copy(update={"generations": generation + 1}).settled()
    about = ForkedFrom(run=str(run), generation=generation, digest=digest_of(source, generation), config=saved)
    new = config.model_copy(update={"forked_from": about})
    for problem in _conflicts(before, new, generation):
        raise UserError(f"{problem} (fork of {run} at generation {generation})")
    ahead = (step for step in steps(new.generations) if step.generation > generation)
    read = {needed for step in ahead for needed in inputs(new, step)}
    for step in sorted(read, key=str):
        if step.generation <= generation and manifest.removed(source.of(step)):
            raise UserError(f"{source.of(step)}: files that later generations read were removed by keep: fork earlier")
    return new


def _conflicts(before: Config, new: Config, generation: int) -> Iterator[str]:
    """One line per key by which generation `generation` + 1 could not go on from the generations before it."""
    for text in differences(_of_real(before), _of_real(new)):
        yield f"the real data and their features stay as they are: {'' if 'encoders' in text else 'data.'}{text}"
    if new.loop.candidates * new.data.size > before.at(generation).samples:
        yield f"loop.candidates={new.loop.candidates}: generation {generation} has {before.samples} samples: lower it"
    if new.train.labels and not before.train.labels:
        yield "train.labels=true: the samples that it would train on have no classes: leave it false"
    if new.train.warm_start and (texts := differences(before.network.deciding(), new.network.deciding())):
        yield f"train.warm_start=true: needs the same network: network.{texts[0]}"
    used = pool_of(before.loop, generation, before.data.size).fresh.stop if generation else 0
    fresh = pool_of(new.loop, generation + 1, new.data.size).fresh
    if fresh and fresh.start < used:
        yield f"loop.fresh.share={new.loop.fresh.share:g}: earlier generations used its first images: give more, or 0"


def _of_real(config: Config) -> dict[str, Any]:
    """What decides the real data, its features and its split. The buffer belongs to the training."""
    return {**config.data.deciding(), "buffer": None, "encoders": ", ".join(config.encoders)}


def begin(config: Config, layout: Layout) -> None:
    """Makes the folder of a fork, which appears with all generations of the other run or not at all.

    Raises UserError when the other run is not there or has changed.
    """
    about = config.forked_from
    assert about.generation is not None
    source = Layout(Path(about.run))
    with files.new_folder(layout.run) as folder:
        part = Layout(folder)
        for step in steps(about.generation + 1):
            if not manifest.is_sealed(source.of(step)):
                raise UserError(f"{source.of(step)}: not sealed, and {layout.run} is to be forked from it")
            link(source, part, step)
        files.put(part.config, dump(config))
        check(config, part)


def check(config: Config, layout: Layout) -> None:
    """Raises UserError when the generations of a fork are not those that it was forked with."""
    about = config.forked_from
    if about.generation is not None:
        for line in problems(layout, about.generation, about.digest):
            raise UserError(line)
        mine = recipes(config)
        for step in steps(about.generation + 1):
            if manifest.read(layout.of(step)).made_from.get("recipe") != mine[step]:
                raise UserError(f"{layout.of(step)}: not made by the configuration in forked_from.config: restore it")


def problems(layout: Layout, generation: int, digest: str) -> list[str]:
    """One line when generations 0 to `generation` of a fork are not all sealed or have another digest."""
    try:
        found = digest_of(layout, generation)
    except UserError as error:
        return [f"{reason(error)}: {layout.run} was forked with it: restore it, or fork again"]
    if found != digest:
        return [f"{layout.run}: generations 0 to {generation} are not those of the run it was forked from: fork again"]
    return []
