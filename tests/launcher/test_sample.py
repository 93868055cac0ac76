"""`entroloop sample` and the sample phase of a run: parts, restarts, ranks, guides."""

import logging
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from forked import entroloop
from loops import command, tiny
from present import present
from ranks import on_ranks

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.seeds import derive_seed, parse_part
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.world import World
from entroloop.launcher import process
from entroloop.launcher.commands import sample as sampling
from entroloop.launcher.config import dump, saved_with
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context

TRAIN, SAMPLE = Step(0, "train"), Step(0, "sample")
LAST = Step(1, "sample")
SHARDS = ("sample.shard_size=16", "generations=1")  # 96 images in 6 shards


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is to sample generation 0 next."""
    config = tiny(tmp_path_factory.mktemp("trained"), *SHARDS)
    runner.run(config, World(), lambda: False, until=TRAIN)
    return config.run_folder


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory):
    """The bytes of its sample phase, made by one process at once."""
    copy = tmp_path_factory.mktemp("expected") / "tiny"
    shutil.copytree(trained, copy)
    runner.run_single(saved_with(copy), World(), lambda: False, SAMPLE, None)
    return samples_of(copy)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "moved")


def samples_of(run):
    folder = Layout(run).of(SAMPLE)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sample(monkeypatch, run, generation=None, part=None):
    """The command in this process, which keeps its signal handlers."""
    monkeypatch.setattr(process, "StopFlag", lambda: bool)
    sampling.sample_command(run, generation, part and parse_part(part))


@pytest.mark.slow
def test_parts_make_their_shards_and_the_whole_seals(run, expected, monkeypatch):
    folder = Layout(run).of(SAMPLE)
    sample(monkeypatch, run, None, "1::4")
    assert sorted(p.name for p in folder.glob("*.tar")) == ["shard-000001.tar", "shard-000005.tar"]
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    sample(monkeypatch, run, 0, "0::1")
    assert not manifest.is_sealed(folder)
    sample(monkeypatch, run)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert samples_of(run) == expected


@pytest.mark.parametrize("option", ["--part", "--shard"])
def test_the_command_line_in_an_array(run, expected, monkeypatch, option):
    """A task as a job array would start it; the run has moved since it was trained."""
    done = command("sample", run, "--generation", 0, option, "0::2", SLURM_ARRAY_TASK_ID="0", SLURM_NTASKS="1")
    assert done.returncode == 0, done.stderr
    assert "96 images, 5 NFE, part 0::2" in done.stdout
    assert "sampling on cpu, precision no, attention sdpa" in done.stdout
    numbers = {name[6:12] for name in samples_of(run)}
    assert numbers == {"000000", "000002", "000004"}
    sample(monkeypatch, run)
    assert samples_of(run) == expected


def copied(source, folder, *overrides):
    """The configuration of a copy of a run that says it was started with it."""
    config = tiny(folder, *overrides)
    shutil.copytree(source, config.run_folder)
    Layout(config.run_folder).config.write_bytes(dump(config))
    return config


def resampled(source, folder, step, *overrides):
    """A copy of a run whose samples of one generation are made anew by another configuration, and what was noted.

    A run would refuse to go on by it, since later steps are sealed.
    """
    config = copied(source, folder, *overrides)
    context = Context(config, Layout(config.run_folder), World())
    runner.check_fits(config, World(), {step.phase})
    shutil.rmtree(context.layout.of(step), ignore_errors=True)
    runner.perform(context, step)
    return context.layout, context.facts


def resample(source, folder, step, *overrides):
    return resampled(source, folder, step, *overrides)[0]


def start(run):
    return entroloop("sample", run)


@pytest.mark.slow
def test_ended_by_signals_it_makes_only_the_missing_shards(tmp_path, trained, monkeypatch):
    config = copied(trained, tmp_path, *SHARDS, "sample.steps=40")  # some tenths of a second a shard
    whole = copied(trained, tmp_path / "whole", *SHARDS, "sample.steps=40")
    folder = Layout(config.run_folder).of(SAMPLE)
    before: dict[Path, int] = {}
    for number, status in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        running = start(config.run_folder)
        while len(list(folder.glob("shard-*.json"))) <= len(before) / 2:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        running.send_signal(number)
        running.communicate(timeout=60)
        assert running.returncode == status
        assert not manifest.is_sealed(folder)
        found = {p: p.stat().st_mtime_ns for p in folder.glob("shard-*") if p.with_suffix(".json").exists()}
        assert before.items() < found.items()
        before = found
    sample(monkeypatch, config.run_folder)
    assert before.items() < {p: p.stat().st_mtime_ns for p in folder.iterdir()}.items()
    runner.run_single(whole, World(), lambda: False, SAMPLE, None)
    assert samples_of(config.run_folder) == samples_of(whole.run_folder)


def test_it_takes_the_first_generation_that_is_not_sampled(run, expected, monkeypatch, capsys):
    sample(monkeypatch, run)
    sample(monkeypatch, run)
    assert capsys.readouterr().out == f"{run}: every generation is sampled\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, None), r"--generation 3: the run has generations 0 … 0"),
        ((-1, None), r"--generation -1: the run has generations 0 … 0"),
        ((0, "4::4"), r"--part 4::4: give i::n with 0 <= i < n"),
    ],
)
def test_wrong_arguments_are_refused(run, monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        sample(monkeypatch, run, *arguments)


def test_what_cannot_be_sampled_yet_is_refused(tmp_path, run, monkeypatch):
    with pytest.raises(UserError, match="not a run"):
        sample(monkeypatch, tmp_path / "nothing")
    (Layout(run).of(TRAIN) / "manifest.json").unlink()
    with pytest.raises(UserError, match="generation 0 is not trained yet"):
        sample(monkeypatch, run)
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="works alone"):
        sample(monkeypatch, run)


# -- the phase on several ranks ---------------------------------------------------------------------------------------


def sample_on(world, run):
    """What rank 0 says, and the NFE."""
    said = []

    class Said(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    handler = Said()
    logger = logging.getLogger("entroloop")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        runner.run_single(saved_with(run), world, lambda: False, SAMPLE, None)
    finally:
        logger.removeHandler(handler)
    return said


def test_more_ranks_make_the_same_bytes(run, expected):
    said = on_ranks(3, sample_on, run)
    assert samples_of(run) == expected
    assert not any("idle" in line for lines in said for line in lines)


def test_fewer_shards_than_ranks_leave_some_idle_and_say_so_once(tmp_path, trained):
    bytes_of = {}
    for size in (1, 3):
        config = copied(trained, tmp_path / str(size), "generations=1", "sample.shard_size=64")
        said = on_ranks(3, sample_on, config.run_folder) if size == 3 else [sample_on(World(), config.run_folder)]
        bytes_of[size] = samples_of(config.run_folder)
        idle = [line for lines in said for line in lines if "idle" in line]
        assert idle == (["sampling: 2 shards for 3 ranks, 1 idle: lower sample.shard_size"] if size == 3 else [])
    assert bytes_of[1] == bytes_of[3]


# -- guides and labels in the loop ------------------------------------------------------------------------------------


def pixels(layout, generation):
    return Dataset(layout.of(Step(generation, "sample"))).all()


RANDOM = "selection.strategy=random"


@pytest.fixture
def plain(finished):
    """Two generations sampled without a guide."""
    return finished


@pytest.mark.parametrize("name", ["previous", "generation_0000"])
def test_an_earlier_generation_guides_the_next(tmp_path, plain, name):
    options = RANDOM, f"sample.guide={name}", "sample.guide_kind=sims", "sample.guide_weight=0.5"
    first = resample(plain.run, tmp_path / "0", SAMPLE, *options)
    second, facts = resampled(plain.run, tmp_path / "1", LAST, *options)
    np.testing.assert_array_equal(pixels(first, 0), pixels(plain, 0))
    assert not np.array_equal(pixels(second, 1), pixels(plain, 1))
    trained = {f"generation {g} train": manifest.read(plain.of(Step(g, "train"))).digest for g in (0, 1)}
    before, after = manifest.read(first.of(SAMPLE)).made_from, manifest.read(second.of(LAST)).made_from
    real = {name: before[name] for name in ("recipe", "prepare", "real")}
    assert before == {**real, "generation 0 train": trained["generation 0 train"]}
    assert after == {**real, "recipe": after["recipe"], **trained}
    assert facts["nfe"] == 2 * 5 * 96  # both networks


def test_another_runs_weights_guide(tmp_path, plain):
    weights = plain.of(Step(1, "train"))
    layout = resample(plain.run, tmp_path, SAMPLE, RANDOM, f"sample.guide={weights}", "sample.guide_weight=1.5")
    assert manifest.read(layout.of(SAMPLE)).made_from["guide"] == manifest.read(weights).digest
    assert not np.array_equal(pixels(layout, 0), pixels(plain, 0))


def test_another_runs_guide_that_does_not_fit_is_refused_before_training(tmp_path, plain):
    guide = f"sample.guide={plain.of(TRAIN)}", "sample.guide_weight=1.5"
    config = tiny(tmp_path, "train.labels=true", *guide)
    with pytest.raises(UserError, match=r"sample\.guide=\S+: a network with 0 classes, not 10: give one"):
        runner.run(config, World(), lambda: False, until=TRAIN)
    assert not Layout(config.run_folder).checkpoints(0).exists()


def test_neon_needs_a_warm_start(tmp_path, plain):
    neon = (RANDOM, "sample.guide=previous", "sample.guide_kind=neon", "sample.guide_weight=0.5")
    with pytest.raises(UserError, match=r"sample\.guide=previous: neon .* train\.warm_start=true"):
        resample(plain.run, tmp_path / "cold", SAMPLE, *neon)
    layout = resample(plain.run, tmp_path / "warm", LAST, *neon, "train.warm_start=true")
    assert not np.array_equal(pixels(layout, 1), pixels(plain, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [("generation_0007", "the run has generations 0 … 1"), ("elsewhere", "no such folder; or give previous")],
)
def test_a_guide_that_is_not_there_is_refused_at_the_first_generation(plain, tmp_path, name, message):
    with pytest.raises(UserError, match=rf"sample\.guide={name}: .*{message}"):
        resample(plain.run, tmp_path, SAMPLE, RANDOM, f"sample.guide={name}", "sample.guide_weight=1")


@pytest.mark.slow
def test_labels_by_the_real_data_or_the_training_set(tmp_path):
    """Ten classes, 96 samples; the two rules draw from other frequencies with the same random numbers."""
    config = tiny(tmp_path, "train.labels=true", "generations=1")
    runner.run(config, World(), lambda: False, until=TRAIN)
    source, found = Layout(config.run_folder), {}
    for rule in ("balanced", "real", "training"):
        options = "train.labels=true", f"sample.labels={rule}", "generations=1"
        found[rule] = present(
            Dataset(resample(source.run, tmp_path / rule, SAMPLE, *options).of(SAMPLE)).labels
        ).tolist()
    assert found["balanced"] == [i % 10 for i in range(96)]
    assert len({tuple(labels) for labels in found.values()}) == 3
    uniform = np.array([derive_seed(0, 0, "label", i) / 2.0**63 for i in range(96)])
    for rule, drawn_as in (("real", source.images), ("training", source.of(Step(0, "select")))):
        labels = present(Dataset(drawn_as).labels)
        edges = np.cumsum(np.bincount(labels, minlength=10)) / len(labels)
        assert found[rule] == np.searchsorted(edges, uniform, side="right").tolist()
