import hashlib
import json
from pathlib import Path
from typing import Any

import forked
import made_by_others
import numpy as np
import pytest
from loops import command

from entroloop.data.encode import encode
from entroloop.data.errors import UserError
from entroloop.data.features.blocks import seal_blocks, write_blocks
from entroloop.data.features.encoder import load_encoder
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.row_files import opened
from entroloop.data.sources.settings import Settings
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import write_index
from entroloop.data.take import take
from entroloop.launcher.commands.entropy import entropy_command
from entroloop.launcher.commands.select import parse_options, select_command
from entroloop.selection import kl_entropy, select

X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


@pytest.fixture
def features(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", features=X)
    np.savez(tmp_path / "two.npz", features=X, other=X[:5])
    np.savez_compressed(tmp_path / "packed.npz", X)
    np.save(tmp_path / "order.npy", np.asfortranarray(X))
    return tmp_path


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "packed.npz", "order.npy"])
def test_ids_and_what_was_done(features, name, capsys):
    out = features / "chosen" / "ids.npy"
    select_command(features / name, 40, out, seed=5, option=["start=7"], as_json=True)
    ids = np.load(out)
    np.testing.assert_array_equal(ids, select(X, 40, seed=5, start=7).ids)
    printed = json.loads(capsys.readouterr().out)
    done = json.loads(out.with_suffix(".json").read_text())
    assert printed == done
    context = done["context"]
    assert context["features"]["sha256"] == hashlib.sha256((features / name).read_bytes()).hexdigest()
    assert context["ids"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    chosen_by = [context[name] for name in ("strategy", "seed", "size", "options")]
    assert chosen_by == ["greedy", 5, 40, {"start": 7}]
    assert done["entropy_after"] == pytest.approx(kl_entropy(X[ids]).nats)
    assert done["entropy_before"] < done["entropy_after"]
    assert 0 < done["radius_min"] <= done["radius_last"]
    assert all(isinstance(value, float) for name, value in done.items() if name != "context")
    assert sorted(p.name for p in out.parent.iterdir()) == ["ids.json", "ids.npy"], "no temporary file stays"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A sealed feature folder of two encoders, as a run has them, and its images."""
    folder = tmp_path_factory.mktemp("sealed")
    images = np.random.default_rng(1).integers(0, 256, (120, 1, 4, 4), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    import_dataset(str(folder / "images.npy"), folder / "images", Settings(shard_size=50))
    data = Dataset(folder / "images")
    encoders = {"pixel": load_encoder("pixel", data.shape), "test_select:mean": load_encoder(MEAN, data.shape)}
    for number in range(3):
        write_blocks(encoders, folder / "features", number, data.shard(number)[0])
    seal_blocks(len(data), 3, encoders, folder / "features", made_from={})
    return folder / "features", images.reshape(120, 16).astype(np.float32)


class _Mean:
    name, dim, digest = "test_select:mean", 1, "0" * 64

    def __call__(self, samples):
        return samples.reshape(len(samples), -1).mean(1, keepdims=True).astype(np.float32)


mean, MEAN = _Mean(), "test_select:mean"


def test_sealed_feature_folders(sealed, tmp_path, capsys):
    folder, pixels = sealed
    select_command(folder, 30, tmp_path / "ids.npy", seed=2, key=["pixel"])
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), select(pixels, 30, seed=2).ids)
    capsys.readouterr()
    entropy_command(folder, key="pixel", as_json=True)
    assert json.loads(capsys.readouterr().out)["nats"] == pytest.approx(kl_entropy(pixels).nats)
    with pytest.raises(UserError, match=r"choose one with --key: pixel, test_select:mean"):
        entropy_command(folder)
    (folder / "manifest.json").rename(folder / "kept")
    with pytest.raises(UserError, match="not a sealed folder of features or vectors"):
        entropy_command(folder, key="pixel")
    (folder / "kept").rename(folder / "manifest.json")


def test_the_same_ids_on_two_ranks(features):
    words = ["select", features / "x.npy", "--size", 40, "--seed", 5, "--out", features / "ids.npy", "--json"]
    run, other = (rank.result() for rank in forked.ranks(2, *words))
    assert (run.returncode, other.returncode) == (0, 0), run.stderr + other.stderr
    assert other.stdout == ""
    np.testing.assert_array_equal(np.load(features / "ids.npy"), select(X, 40, seed=5).ids)
    assert json.loads(run.stdout) == json.loads((features / "ids.json").read_text())


def test_arrays_are_mapped_not_read(features):
    for name in ("x.npy", "x.npz"):
        with opened(features / name) as rows:
            assert isinstance(rows[:], np.memmap)
            np.testing.assert_array_equal(rows[:], X)
    with opened(features / "two.npz", "other") as rows:
        assert rows.about()["shape"] == [5, 6]


def test_entropy_prints_the_documented_keys(features, capsys):
    entropy_command(features / "x.npy", 2, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"nats", "n", "d", "k", "floored"}
    assert printed["nats"] == pytest.approx(kl_entropy(X, 2).nats)
    entropy_command(features / "x.npy")
    assert "nats (n 300, d 6, k 1" in capsys.readouterr().out


def test_labels_come_from_a_file(features):
    np.save(features / "labels.npy", np.arange(300) % 3)
    out = features / "ids.npy"
    select_command(features / "x.npy", 30, out, "random-class-balanced", labels=features / "labels.npy")
    assert np.bincount(np.load(out) % 3).tolist() == [10, 10, 10]
    with pytest.raises(UserError, match=r"x.npy: must hold 300 integers, one per row, holds float32 of shape"):
        select_command(features / "x.npy", 30, out, "random-class-balanced", labels=features / "x.npy")


def test_a_reference_of_another_width_is_named(features):
    np.save(features / "wide.npy", X[:, [0, *range(6)]])
    with pytest.raises(UserError, match=r"wide.npy: rows of shape \[7\], but .*x.npy has \[6\]"):
        select_command(features / "x.npy", 3, features / "i.npy", reference=features / "wide.npy")


def _truncated(folder):
    path = folder / "cut.npy"
    path.write_bytes((folder / "x.npy").read_bytes()[:2000])
    return path


def _text(folder):
    path = folder / "text.npz"
    path.write_text("no archive")
    return path


def _flat(folder):
    np.save(folder / "flat.npy", X[0])
    return folder / "flat.npy"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.npy", "none.npy: no such file or folder"),
        (_truncated, "cut.npy: damaged: holds 1872 bytes of data, but its header says 7200"),
        (_text, "text.npz: damaged, or not a NumPy file"),
        (_flat, r"flat.npy: holds float32 of shape \[6\]; expected vectors \(numbers \[N, D\]\) or images"),
        (lambda folder: folder, "not a sealed folder of features or vectors"),
    ],
)
def test_unusable_files_are_named(features, make, message):
    with pytest.raises(UserError, match=message), opened(make(features)):
        pass


def test_a_missing_array_lists_those_there_are(features):
    with (
        pytest.raises(UserError, match=r"^--key images: .*two.npz holds no such array: give one of features, other$"),
        opened(features / "two.npz", "images"),
    ):
        pass


def test_a_file_that_changes_while_it_is_read_is_refused(features):
    with pytest.raises(UserError, match=r"x.npy: changed while it was read"), opened(features / "x.npy"):
        np.save(features / "x.npy", X[:10])


def test_options_become_values():
    assert parse_options(["a=1", "b-c=0.5", "d=true", "e=text"]) == {"a": 1, "b_c": 0.5, "d": True, "e": "text"}
    with pytest.raises(UserError, match="--option: must be key=value, is 'a'"):
        parse_options(["a"])
    with pytest.raises(UserError, match=r"--out: must end in .npy"):
        select_command(Path("x.npy"), 3, Path("ids.txt"))


@pytest.mark.parametrize("kind", ["import", "index"])
def test_sealed_vectors_are_read_as_measure_reads_them(tmp_path, capsys, kind):
    import_dataset("wine", tmp_path / "real" / "wine", Settings(shard_size=50))
    folder, vectors = tmp_path / "real" / "wine", Dataset(tmp_path / "real" / "wine").all()
    if kind == "index":
        rows = np.arange(0, 178, 2)
        origins = np.stack([np.zeros_like(rows), rows], axis=1)
        one = Dataset(folder)
        folder, vectors = tmp_path / "real" / "part", vectors[rows]
        write_index(
            folder, [one], origins, one.provenance.take(rows), None, run=tmp_path, shard_size=50, about={}, made_from={}
        )
    select_command(folder, 30, tmp_path / "ids.npy", seed=2, reference=folder, strategy="covariance-matching")
    expected = select(vectors, 30, "covariance-matching", seed=2, reference=vectors).ids
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), expected)
    capsys.readouterr()
    entropy_command(folder, as_json=True)
    assert json.loads(capsys.readouterr().out)["nats"] == kl_entropy(vectors).nats
    with pytest.raises(UserError, match=r"--key x: .* holds a single array, which has no name"):
        entropy_command(folder, key="x")


def test_sealed_images_and_damaged_sets_are_refused_by_name(tmp_path):
    import_dataset("digits", tmp_path / "digits", Settings(limit=20))
    with pytest.raises(UserError, match="digits: holds images, but vectors"):
        entropy_command(tmp_path / "digits")
    import_dataset("iris", tmp_path / "iris")
    shard = tmp_path / "iris" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1000] + bytes(1000)[:-1])
    with pytest.raises(UserError, match=str(shard)):
        entropy_command(tmp_path / "iris")


def test_errors_of_the_calculation_name_the_file_or_option(tmp_path):
    zero = X.copy()
    zero[17] = 0
    np.save(tmp_path / "zero.npy", zero)
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "ids.npy"
    for said, call in {
        "zero.npy: row 17 is zero": lambda: entropy_command(tmp_path / "zero.npy", metric="cosine"),
        "--k: must be between": lambda: entropy_command(tmp_path / "x.npy", k=10**6),
        "zero.npy: row 17 is zero and": lambda: select_command(tmp_path / "zero.npy", 3, out, metric="cosine"),
        "--size: must be": lambda: select_command(tmp_path / "x.npy", 10**6, out),
        "--per-class: needs labels": lambda: select_command(tmp_path / "x.npy", 3, out, per_class=True),
        "--reference: herding needs": lambda: select_command(tmp_path / "x.npy", 3, out, "herding"),
        "--labels: random-class-balanced needs": lambda: select_command(
            tmp_path / "x.npy", 3, out, "random-class-balanced"
        ),
        "--generations: stratified": lambda: select_command(
            tmp_path / "x.npy", 3, out, "random", option=["stratified=true"]
        ),
        "--reference-labels: give --reference": lambda: select_command(
            tmp_path / "x.npy", 3, out, reference_labels=tmp_path / "x.npy"
        ),
        "x.npy: must hold 300 integers": lambda: select_command(
            tmp_path / "x.npy", 3, out, reference=tmp_path / "x.npy", reference_labels=tmp_path / "x.npy"
        ),
        "--trim: must be": lambda: select_command(tmp_path / "x.npy", len(X), out, trim=0.5),
        "zero.npy: row 17 is zero and has": lambda: select_command(
            tmp_path / "x.npy", 3, out, "covariance-matching", metric="cosine", reference=tmp_path / "zero.npy"
        ),
    }.items():
        with pytest.raises(UserError, match=f"^(.*/)?{said}"):
            call()


@pytest.mark.slow
def test_the_chosen_samples_are_written_as_take_writes_them(tmp_path):
    source = made_by_others.make("tars", tmp_path)
    encode(source, tmp_path / "features", ["pixel"], resolution=3)
    words = ["--size", 10, "--seed", 2, "--source", source]
    for rank in forked.ranks(
        2, "select", tmp_path / "features", *words, "--out", tmp_path / "i.npy", "--write", tmp_path / "chosen"
    ):
        assert rank.result().returncode == 0, rank.result().stderr
    take(source, tmp_path / "i.npy", tmp_path / "taken", settings=Settings(resolution=3))
    assert (tmp_path / "chosen" / "manifest.json").read_bytes() == (tmp_path / "taken" / "manifest.json").read_bytes()
    ended = command("select", tmp_path / "features", *words, "--out", tmp_path / "j.npy",
                    "--write", tmp_path / "k.txt", "--as", "keys")  # fmt: skip
    said = f"{tmp_path / 'j.npy'}: 10 of 50 rows, by greedy; {tmp_path / 'k.txt'}: the same 10 samples as keys"
    assert ended.stdout.strip() == said, ended.stderr
    assert len((tmp_path / "k.txt").read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("--source: give --source and --write together", {"source": "tars"}),
        ("--write: give --source and --write together", {"write": "new"}),
        ("--source .*npz: is not the source of the features", {"source": "samples.npz", "write": "new"}),
        ("--as tar: give one of", {"source": "tars", "write": "new", "form": "tar"}),
        ("already holds other files", {"source": "tars", "write": "tars/.."}),
        ("--source .*x.npy: has 300 samples, but .* has 50 rows", {"source": "x.npy", "write": "new", "plain": True}),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_chosen(features, message, more):
    source = made_by_others.make("tars", features)
    made_by_others.make("npz", features)
    encode(source, features / "made", ["pixel"])
    np.save(features / "plain.npy", X[:50])
    given = features / ("plain.npy" if more.pop("plain", False) else "made")
    kinds: dict[str, Any] = {
        "source": lambda name: str(features / name),
        "write": lambda name: features / name,
        "form": str,
    }
    with pytest.raises(UserError, match=message):
        select_command(given, 10, features / "ids.npy", **{name: kinds[name](value) for name, value in more.items()})
    assert not (features / "ids.npy").exists()
    assert not (features / "new").exists()


@pytest.mark.parametrize("form", ["shards", "folder"])
def test_another_choice_than_the_one_that_is_written_is_refused_with_its_ids(features, form):
    source = made_by_others.make("tars", features)
    encode(source, features / "made", ["pixel"])
    options: dict[str, Any] = {"source": str(source), "write": features / "new", "form": form}
    select_command(features / "made", 10, features / "ids.npy", **options)
    select_command(features / "made", 10, features / "again.npy", **options)
    with pytest.raises(UserError, match=r"new: (already )?holds"):
        select_command(features / "made", 10, features / "other.npy", seed=1, **options)
    assert not (features / "other.npy").exists()
