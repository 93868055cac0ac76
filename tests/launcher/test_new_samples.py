"""`entroloop sample RUN --count`: new samples as a grid, a folder or arrays, and a run that stays as it is."""

import os
import signal
import weakref

import numpy as np
import pytest
from loops import VECTORS, command, tiny
from PIL import Image

from entroloop.data.runfolder import Layout, Step
from entroloop.data.store.dataset import Dataset
from entroloop.data.world import World
from entroloop.launcher.api import Drawn
from entroloop.launcher.new_samples import grid, write
from entroloop.launcher.run import runner
from entroloop.launcher.run.fork import forked
from entroloop.launcher.run.resume import open_run


def content(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn(run, out, *options):
    done = command("sample", run, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_each_form_holds_the_same_new_samples_and_the_run_stays_as_it_is(finished, tmp_path):
    before = content(finished.run)
    assert "18 new samples, seed 1" in drawn(finished.run, tmp_path / "x.npz", "--count", "18")
    drawn(finished.run, tmp_path / "folder", "--count", "18")
    drawn(finished.run, tmp_path / "grid.png", "--count", "18")
    samples = np.load(tmp_path / "x.npz")["samples"]
    assert (samples.shape, samples.dtype) == ((18, 1, 8, 8), np.uint8)
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [f"{i:06d}.png" for i in range(18)]
    for name, sample in zip(names, samples, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "folder" / name)), sample[0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid(samples)[0])
    assert content(finished.run) == before
    for given in ("folder", "x.npz"):
        imported = command("import", tmp_path / given, tmp_path / f"set-{given}")
        assert imported.returncode == 0, imported.stderr


@pytest.mark.parametrize("name", ["folder", "x.npz"])
def test_files_are_written_batch_by_batch(tmp_path, name):
    def batches():
        alive = []
        for number in range(4):
            samples = np.full((2, 1, 4, 4), number, np.uint8)
            alive.append(weakref.ref(samples))
            assert sum(one() is not None for one in alive) <= 2
            yield Drawn(samples, None)
            del samples

    write(batches(), 8, tmp_path / name)
    if name == "folder":
        assert len(list((tmp_path / name).iterdir())) == 8
    else:
        assert np.load(tmp_path / name)["samples"][:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_folder_takes_what_a_killed_command_left_with_it(tmp_path):
    def killing():
        yield Drawn(np.zeros((2, 1, 4, 4), np.uint8), None)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            write(killing(), 4, tmp_path / "folder")
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] != []
    write(iter([Drawn(np.zeros((4, 1, 4, 4), np.uint8), None)]), 4, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_default_seed_is_not_the_run_s_own(finished, tmp_path):
    own = Dataset(Layout(finished.run).of(Step(1, "sample"))).take(np.arange(20))
    for seed, equal in ((None, False), (0, True), (7, False)):
        options = [] if seed is None else ["--seed", seed]
        drawn(finished.run, tmp_path / "x.npz", "--count", 20, *options)
        assert np.array_equal(np.load(tmp_path / "x.npz")["samples"], own) == equal


def test_a_fork_draws_from_shared_generations_as_the_other_run_does(finished, tmp_path):
    config = forked(tiny(tmp_path, "name=fork", "sample.steps=2", "generations=3"), finished.run, 0)
    layout = open_run(config)
    for run in (finished.run, layout.run):
        drawn(run, tmp_path / f"{run.name}.npz", "--count", 5, "--seed", 3, "--generation", 0)
    one, two = (np.load(tmp_path / f"{run.name}.npz")["samples"] for run in (finished.run, layout.run))
    assert np.array_equal(one, two)


def test_labels_of_a_conditional_model_and_vectors_are_in_the_arrays(tmp_path):
    config = tiny(tmp_path, "generations=1", "train.labels=true", "network.width=8", of=VECTORS)
    runner.run(config, World(), lambda: False, until=Step(0, "train"))
    drawn(config.run_folder, tmp_path / "x.npz", "--count", "7")
    with np.load(tmp_path / "x.npz") as arrays:
        assert (arrays["samples"].shape, arrays["samples"].dtype) == ((7, 13), np.float32)
        assert arrays["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    refused = command("sample", config.run_folder, "--count", 3, "--out", tmp_path / "grid.png")
    assert refused.returncode == 2
    assert "are no pictures" in refused.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--count", "3"], "--count: draws new samples: give --out"),
        (["--count", "3", "--out", "x.npz", "--part", "0::2"], "and no --part"),
        (["--out", "x.npz"], "--out: goes with --count"),
        (["--seed", "3"], "--seed: goes with --count"),
        (["--count", "0", "--out", "x.npz"], "--count"),
        (["--count", "3", "--out", "x.jpg"], "give a .png (grid)"),
        (["--count", "3", "--out", "x.npz", "--generation", "2"], "generation 2 is not trained"),
        (["--count", "3", "--out", "there"], "exists and is no empty folder"),
        (["--count", "3", "--out", "there/new"], "entroloop: there/new: "),
        (["--count", "3", "--out", "there/new.png"], "entroloop: there/new.png: "),
    ],
)
def test_wrong_input_is_one_line(finished, tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("a file")
    done = command("sample", finished.run, *options)
    assert done.returncode == 2
    assert line in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_grid_is_about_square():
    images = np.arange(5 * 2 * 4, dtype=np.uint8).reshape(5, 1, 2, 4)
    made = grid(images, gap=1)
    assert made.shape == (1, 8, 9)
    assert np.array_equal(made[0, :2, 5:], images[1, 0])
    assert np.array_equal(made[0, 6:8, :4], images[4, 0])
    assert (made[0, 2] == 255).all()
