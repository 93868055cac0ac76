"""`entroloop measure` and `report` from the command line: their inputs, output and refusals."""

import json
import math

import loops
import made_by_others
import numpy as np
import pytest
import report_runs
import torch
import typer
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import load_encoder
from entroloop.data.store.shards import REAL, Provenance
from entroloop.eval import compare, printed
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets
from entroloop.eval.samples import opened_set
from entroloop.launcher import __main__ as launcher
from entroloop.launcher.commands.measure import measure_command
from entroloop.launcher.commands.report import report_command

app = typer.Typer()
app.command("measure")(measure_command)
app.command("report")(report_command)


def digits(n, start=0):
    return report_runs.digits()[start : start + n]


def vectors(images):
    return images.reshape(len(images), -1).astype(np.float32)


@pytest.fixture
def kinds(tmp_path):
    """The same 30 images in every form that can be read."""
    images = digits(30)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{i:03d}.png")
    report_runs.write_set(tmp_path / "shards", images, Provenance(np.full(30, REAL), np.arange(30), ("",) * 30))
    np.save(tmp_path / "images.npy", images[:, 0])
    np.savez(tmp_path / "images.npz", images=images.transpose(0, 2, 3, 1), labels=np.arange(30))
    np.save(tmp_path / "vectors.npy", vectors(images))
    np.save(tmp_path / "doubles.npy", vectors(images).astype(np.float64))
    names = ("images", "shards", "images.npy", "images.npz", "vectors.npy", "doubles.npy")
    return {name: tmp_path / name for name in names}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


def test_every_kind_of_file_gives_the_same_numbers(kinds, tmp_path):
    np.save(tmp_path / "generated.npy", vectors(digits(25, 100)))
    np.save(tmp_path / "images_generated.npy", digits(25, 100))
    found = measure(Sets(vectors(digits(25, 100)), vectors(digits(30)))).values
    exact = {key: None if math.isnan(value) else value for key, value in found.items()}
    for name, path in kinds.items():
        generated = "generated.npy" if name in ("vectors.npy", "doubles.npy") else "images_generated.npy"
        row = compare.compare(tmp_path / generated, path)
        assert {key: row[key] for key in exact} == pytest.approx(exact), name


def test_json_is_one_object_with_plain_numbers_and_everything_else_under_context(kinds, tmp_path):
    np.save(tmp_path / "heldout.npy", digits(40, 200))
    done = run("measure", kinds["images"], kinds["shards"], tmp_path / "heldout.npy", "--json", "--seed", 3)
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert all(value is None or isinstance(value, float) for key, value in row.items() if key != "context")
    assert row["generalization_score"] == 0
    assert row["memorized_fraction"] == 1
    context = row["context"]
    assert (context["n_generated"], context["n_training"], context["n_reference"]) == (30, 30, 40)
    assert context["encoder"] == "pixel"
    assert context["seed"] == 3
    assert context["k"]["precision"] == 3
    assert len(context["encoder_digest"]) == 64
    assert context["encoder_resize"] == "none"
    assert context["encoder_weights"] == {}


def test_without_json_a_table_for_people(kinds):
    done = run("measure", kinds["images"], kinds["shards"])
    assert done.exit_code == 0, done.output
    assert "Fréchet distance" in done.stdout
    digest = load_encoder("pixel", (1, 8, 8)).digest
    ks = "k precision 3, recall 3, density 5, coverage 5, entropy 1"
    line = f"pixel features, digest {digest[:16]}…; no weights; resize none; {ks}; seed 0\n"
    assert f"30 generated, 30 training; {line}All measures compare with the training set." in done.stdout
    assert "; vector features, digest " in run("measure", kinds["vectors.npy"], kinds["vectors.npy"]).stdout
    done = run("measure", kinds["images"], kinds["shards"], kinds["images.npy"])
    assert f"30 generated, 30 training, 30 reference; {line}" in done.stdout
    assert "density and coverage compare with the reference set; the scores of memorization" in done.stdout


def test_resampling_gives_a_range_around_the_half_size_numbers(kinds, tmp_path):
    np.save(tmp_path / "generated.npy", digits(25, 100))
    done = run("measure", tmp_path / "generated.npy", kinds["shards"], "--json", "--resamples", 40)
    row = json.loads(done.stdout)
    ranges = row["context"]["resampled"]["ranges"]
    low, high = ranges["frechet_distance"]
    assert low < high
    assert compare.compare(tmp_path / "generated.npy", kinds["shards"], resamples=40) == row


def test_resolution_brings_sets_of_different_sizes_together(kinds, tmp_path):
    np.save(tmp_path / "large.npy", digits(30).repeat(2, axis=2).repeat(2, axis=3))
    row = compare.compare(tmp_path / "large.npy", kinds["images"], resolution=8)
    assert row["generalization_score"] == 0
    assert row["context"]["resize"].startswith("central square; block means")
    assert "Resized to 8 pixels per side: central square" in printed.printed({"": row}, "text", several=False)
    assert compare.compare(kinds["images"], kinds["images"])["context"]["resize"] is None
    with pytest.raises(UserError, match=r"holds 8x8 images with 1 channel.*16x16 images"):
        compare.compare(tmp_path / "large.npy", kinds["images"])


def broken(tmp_path):
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00v")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (tmp_path / "unsealed").mkdir()
    (tmp_path / "unsealed" / "shard-000000.tar").write_bytes(b"")
    (tmp_path / "unsealed" / "shard-000000.json").write_text("{}")
    np.save(tmp_path / "floats.npy", np.zeros((5, 1, 8, 8)))
    np.save(tmp_path / "line.npy", np.zeros(5))
    np.save(tmp_path / "one.npy", np.zeros((1, 64), dtype=np.float32))
    np.save(tmp_path / "nan.npy", np.full((9, 64), np.nan, dtype=np.float32))
    np.save(tmp_path / "large.npy", np.full((9, 64), -1e39))
    np.save(tmp_path / "rowless.npy", np.zeros((0, 64), dtype=np.float32))
    np.save(tmp_path / "narrow.npy", np.zeros((9, 0), dtype=np.float32))
    np.savez(tmp_path / "unnamed.npz", np.zeros((9, 64)), np.zeros((8, 64)))
    np.savez(tmp_path / "several.npz", a=np.zeros((9, 64)), b=np.zeros((8, 64)), c=np.zeros(9))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such file"),
        ("cut.npy", "damaged, or not a NumPy file"),
        ("cut.npz", "damaged"),
        ("empty", "empty"),
        ("images", "a.png"),
        ("unsealed", "manifest.json"),
        ("floats.npy", "images must be uint8 from 0 to 255, these are float64"),
        ("line.npy", "expected vectors"),
        ("one.npy", "holds 1 sample; measures need at least 2"),
        ("nan.npy", "row 0 holds NaN or infinity"),
        ("large.npy", "beyond the range of float32"),
        ("rowless.npy", "holds no rows"),
        ("narrow.npy", "holds rows without numbers, shape [9, 0]"),
        ("unnamed.npz", "holds several arrays of rows: choose one with --key: arr_0, arr_1"),
        ("several.npz", "holds several arrays of rows: choose one with --key: a, b"),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path, name, message):
    broken(tmp_path)
    np.save(tmp_path / "good.npy", vectors(digits(20)))
    good = tmp_path / "good.npy"
    for paths in ((tmp_path / name, good), (good, tmp_path / name), (good, good, tmp_path / name)):
        with pytest.raises(UserError) as caught:
            compare.compare(*paths)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_shards_of_other_programs_may_have_any_name(tmp_path):
    first = min(made_by_others.make("tars", tmp_path).iterdir())
    (tmp_path / "theirs").mkdir()
    first.rename(tmp_path / "theirs" / "shard-000000.tar")
    with opened_set(tmp_path / "theirs") as found:
        assert found.count == 17


def test_labels_beside_unnamed_samples_are_no_second_set(tmp_path):
    np.savez(tmp_path / "labelled.npz", digits(20)[:, 0], np.arange(20))
    with opened_set(tmp_path / "labelled.npz") as found:
        assert (found.count, found.shape) == (20, (1, 8, 8))


class Broken:
    name, dim, digest = "broken", 1, "0" * 64

    def __init__(self, shape, device):
        pass

    def __call__(self, samples):
        return np.where(samples.any((1, 2, 3)), np.nan, 0)[:, None].astype(np.float32)


def test_features_that_are_not_finite_name_the_set_and_the_encoder(kinds):
    with pytest.raises(UserError, match=r"images: encoder test_measure:Broken: .* row 0 holds NaN or infinity"):
        compare.compare(kinds["images"], kinds["shards"], encoder="test_measure:Broken")


@pytest.mark.parametrize("name", ["run", "run/generation_0001", "sweep"])
def test_a_run_is_no_set(tmp_path, name):
    run_folder = report_runs.make_run(tmp_path / "run", generations=2, n=20)
    samples = run_folder / "generation_0001" / "samples"
    if name == "sweep":
        (tmp_path / "sweep").mkdir()
        run_folder = run_folder.rename(tmp_path / "sweep" / "run")
        samples = run_folder / "generation_0001" / "samples"
    np.save(tmp_path / "good.npy", digits(20))
    with pytest.raises(UserError) as caught:
        compare.compare(tmp_path / name, tmp_path / "good.npy")
    assert str(caught.value) == (
        f"{tmp_path / name}: holds the sets of a run, real, generated and selected: give one of them, such as {samples}"
    )
    assert compare.compare(samples, samples)["generalization_score"] == 0


def test_arrays_of_a_source_are_resized_like_images(kinds, tmp_path):
    images = digits(30)[:, 0]
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes() + images.tobytes())
    with opened_set(path, 4) as one, opened_set(kinds["images"], 4) as other:
        for a, b in zip(one.blocks(slice(3, 30)), other.blocks(slice(3, 30)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_resolution_of_vectors_is_refused(kinds):
    with pytest.raises(UserError, match=r"^--resolution 4: .*vectors.npy holds vectors, which have none$"):
        compare.compare(kinds["vectors.npy"], kinds["vectors.npy"], resolution=4)


def test_flip_counts_mirrored_copies(kinds, tmp_path):
    """As after training with flips: see `mirrored` of `measure`."""
    mirrored = digits(30)[..., ::-1]
    np.save(tmp_path / "mirrored.npy", mirrored)
    plain, found = (
        compare.compare(tmp_path / "mirrored.npy", kinds["shards"], resamples=3, flip=flip) for flip in (False, True)
    )
    assert (plain["context"]["mirrored_copies_count"], found["context"]["mirrored_copies_count"]) == (False, True)
    assert plain["memorized_fraction"] < 0.5
    assert found["memorized_fraction"] == 1
    same = ("frechet_distance", "generalization_score")
    assert [found[name] for name in same] == [plain[name] for name in same]
    ranges = [row["context"]["resampled"]["ranges"] for row in (plain, found)]
    assert ranges[0]["frechet_distance"] == ranges[1]["frechet_distance"]
    assert ranges[0]["memorized_fraction"][1] < ranges[1]["memorized_fraction"][0]
    text = run("measure", tmp_path / "mirrored.npy", kinds["shards"], "--flip").stdout
    assert "\nMirrored copies of training images count as copies." in text
    with pytest.raises(UserError, match=r"^--flip: .*vectors.npy holds vectors, which have no mirror images$"):
        compare.compare(kinds["vectors.npy"], kinds["vectors.npy"], flip=True)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_one_line(kinds, capsys, seed):
    with pytest.raises(SystemExit) as caught:
        launcher.main(["measure", *(str(kinds["images.npy"]),) * 2, "--seed", str(seed)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'--seed': Input should be " in said


def test_exit_status_two_without_traceback(tmp_path):
    done = loops.command("measure", tmp_path / "a.npy", tmp_path / "b.npy")
    assert done.returncode == 2
    assert "a.npy: no such file or folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture
def few_plots(monkeypatch):
    monkeypatch.setattr("entroloop.eval.report.plots.measure_curves", lambda *arguments: None)


@pytest.mark.usefixtures("few_plots")
def test_report_writes_every_format(tmp_path):
    report_runs.make_run(tmp_path / "run", generations=1, n=20)
    for form in ("html", "csv", "json"):
        done = run("report", tmp_path / "run", "--format", form, "--out", tmp_path / f"r.{form}")
        assert done.exit_code == 0, done.output
        assert (tmp_path / f"r.{form}").stat().st_size > 100
    assert b"refresh" not in (tmp_path / "r.html").read_bytes()


@pytest.mark.usefixtures("few_plots")
def test_watch_ends_when_all_runs_are_finished(tmp_path):
    report_runs.make_run(tmp_path / "run", generations=1, n=20)
    done = run("report", tmp_path / "run", "--out", tmp_path / "r.html", "--watch")
    assert done.exit_code == 0, done.output
    assert b'http-equiv="refresh"' not in (tmp_path / "r.html").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("few_plots")
def test_watch_writes_again_when_a_run_goes_on(tmp_path, monkeypatch):
    folder = report_runs.make_run(tmp_path / "run", generations=2, n=20)
    seal = folder / "generation_0001" / "metrics" / "manifest.json"
    kept = seal.read_bytes()
    seal.unlink()
    looks = []

    def go_on(seconds):
        looks.append((tmp_path / "r.html").read_text())
        if len(looks) == 2:
            seal.write_bytes(kept)

    monkeypatch.setattr("time.sleep", go_on)
    done = run("report", folder, "--out", tmp_path / "r.html", "--watch", "--interval", 7)
    assert done.exit_code == 0, done.output
    assert len(looks) == 2
    assert 'http-equiv="refresh" content="7"' in looks[0]
    assert "run: 1 of 2 generations" in looks[0]
    assert "Not finished" not in (tmp_path / "r.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("few_plots")
def test_watch_waits_for_a_sweeps_runs_one_after_another(tmp_path, monkeypatch):
    """Before the first exists, between the end of one and the start of the next, and past one that failed."""
    sweep, looks = tmp_path / "sweep", []

    def go_on(seconds):
        looks.append(sorted(path.name for path in sweep.glob("*")))
        if len(looks) == 2:
            report_runs.make_run(sweep / "greedy-0", generations=1, n=20)
        if len(looks) == 4:
            report_runs.make_run(sweep / "random-0", generations=1, n=20, planned=2)
        if len(looks) == 9:
            (sweep / "random-0" / "state.json").write_text('{"status": "failed", "exit": 1, "reason": ""}')
        assert len(looks) < 20

    monkeypatch.setattr("time.sleep", go_on)
    done = run("report", sweep, "--out", tmp_path / "r.html", "--watch", "--interval", 20)
    assert done.exit_code == 0, done.output
    assert f"waiting for the first run in {sweep}" in done.output
    assert len(looks) == 9 + 3
    assert "random-0: 1 of 2 generations; failed" in (tmp_path / "r.html").read_text()


def test_report_refuses_a_folder_as_file(tmp_path):
    report_runs.make_run(tmp_path / "run", generations=1, n=20)
    done = run("report", tmp_path / "run", "--out", tmp_path)
    assert isinstance(done.exception, UserError)
    assert "give a file name" in str(done.exception)


def test_digits_of_two_classes_differ_more_than_halves_of_one():
    images, labels = load_digits(return_X_y=True)
    zeros, ones = (images[labels == c].astype(np.float32) for c in (0, 1))
    near = measure(Sets(zeros[::2], zeros[1::2])).values
    far = measure(Sets(zeros[::2], ones)).values
    assert far["frechet_distance"] > 5 * near["frechet_distance"]
    assert far["coverage"] < 0.1 < near["coverage"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_is_not_here_is_refused_in_one_line(device, tmp_path):
    np.save(tmp_path / "a.npy", vectors(digits(20)))
    found = run("measure", tmp_path / "a.npy", tmp_path / "a.npy", "--device", device)
    assert isinstance(found.exception, UserError)
    said = str(found.exception)
    assert said.startswith(f"--device {device}: no such device here; there is cpu")
    assert "\n" not in said


def test_the_device_reaches_the_encoder(tmp_path, monkeypatch):
    used = []
    load = load_encoder

    def watched(*args, **options):
        used.append(options["device"])
        return load(*args, **options)

    monkeypatch.setattr(compare, "load_encoder", watched)
    np.save(tmp_path / "a.npy", vectors(digits(20)))
    for arguments in (("--device", "cpu"), ()):
        assert run("measure", tmp_path / "a.npy", tmp_path / "a.npy", *arguments).exit_code == 0
    assert used == [torch.device("cpu"), torch.device("cuda" if torch.cuda.is_available() else "cpu")]


def test_copies_of_a_set_that_holds_every_row_twice_are_all_memorized(tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    np.save(tmp_path / "g.npy", rows)
    np.save(tmp_path / "t.npy", np.repeat(rows, 2, 0))
    row = compare.compare(tmp_path / "g.npy", tmp_path / "t.npy")
    assert (row["memorized_fraction"], row["generalization_score"], row["authenticity"]) == (1, 0, 0)
