"""A seal's `made_from` names every sealed folder that its phase opened, with the folder's digest."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from loops import tiny

from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings
from entroloop.data.store import manifest
from entroloop.data.world import World
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.recipes import parents, steps
from entroloop.launcher.run.resume import open_run
from entroloop.launcher.run.runner import perform

pytestmark = pytest.mark.slow

SHORT = (
    "train.kimg=0.016", "train.checkpoint_kimg=1", "data.labelled=16", "data.limit=200", "generations=3",
    "sample.steps=1",
)  # fmt: skip
LABELS = ("train.labels=true", "evaluation.encoders=[pixel,classifier]")
RUNS = {
    "subsample": (
        "loop.paradigm=accumulate-subsample", "loop.candidates=2", "loop.fresh.share=0.25",
        "selection.encoder=classifier",
        "train.flip=true",
        "train.warm_start=true", "sample.guide=previous", "sample.guide_weight=1.5", "sample.labels=training", *LABELS,
    ),
    "index": ("loop.paradigm=accumulate", "data.selected=index", "train.flip=true"),
    "growing": ("loop.paradigm=accumulate",),
    "replace": ("sample.labels=real", "train.warm_start=true", *LABELS),
}  # fmt: skip
ALONG = {"real", "classifier", "prepare"}  # named together, where a phase opens one of them

_opened: set[Path] | None = None


def _hook(event, arguments):
    if _opened is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        _opened.add(Path(os.fspath(arguments[0])).absolute())


@contextmanager
def opens(into):
    global _opened
    before, _opened = _opened, into
    try:
        yield
    finally:
        _opened = before


@pytest.fixture(scope="module", autouse=True)
def hooked():
    sys.addaudithook(_hook)  # there is no way to remove it


def walked(folder, *overrides):
    """Runs every phase on its own; yields it with the sealed folders that it opened before it made its own seal."""
    config = tiny(folder, *SHORT, *overrides)
    layout = open_run(config)
    for step in steps(config.generations):
        found: set[Path] = set()
        with opens(found):
            perform(Context(config, layout, World()), step)
        own = {layout.of(step)} | ({layout.images, layout.classifier} if step == PREPARE else set())
        above = {parent.absolute() for path in found for parent in path.parents}
        yield config, layout, step, {p for p in above if manifest.is_sealed(p)} - {o.absolute() for o in own}


@pytest.mark.parametrize("run", ["subsample", "index", "replace"])
def test_it_names_all_that_a_phase_opened(run, tmp_path, monkeypatch):
    made_from = Context.made_from

    def unseen(self, step):  # it reads the manifests of all it names
        with opens(None):
            return made_from(self, step)

    monkeypatch.setattr(Context, "made_from", unseen)
    import_dataset("digits", tmp_path / "digits", Settings(limit=300))
    for config, layout, step, opened in walked(
        tmp_path, *RUNS[run], f"data.source={tmp_path / 'digits'}", "data.limit=null"
    ):
        folders = parents(config, layout, step)
        named = manifest.read(layout.of(step)).made_from
        assert named.keys() == {"recipe", *folders}
        assert all(named[name] == manifest.read(path).digest for name, path in folders.items()), step
        assert opened <= {path.absolute() for path in folders.values()}, step
        idle = {name for name, path in folders.items() if path.absolute() not in opened}
        assert idle <= ALONG, step


def test_warm_starts_and_growing_sets_name_their_parents(tmp_path):
    for run, step, wanted in (
        ("replace", Step(2, "train"), {"generation 1 train", "generation 2 select"}),
        ("growing", Step(2, "select"), {"generation 1 select", "generation 1 sample", "generation 1 encode"}),
        ("index", Step(2, "train"), {"generation 2 select", "generation 0 sample", "generation 1 sample"}),
        ("subsample", Step(2, "sample"), {"generation 1 train", "generation 2 train", "generation 2 select"}),
    ):
        config = tiny(tmp_path, *SHORT, *RUNS[run])
        assert wanted == set(parents(config, Layout(config.run_folder), step)) - ALONG
