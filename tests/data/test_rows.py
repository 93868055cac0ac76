"""One file means one array to `import`, `measure`, `select` and `entropy`, or is refused by each in the same words."""

import contextlib
import io
import json
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
import typer
from present import present
from typer.testing import CliRunner

from entroloop.data.errors import UserError
from entroloop.data.features.blocks import seal_blocks, write_blocks
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.row_files import keys_of, open_rows
from entroloop.data.sources.settings import Settings
from entroloop.data.store.dataset import Dataset
from entroloop.eval import compare
from entroloop.eval.samples import opened_set
from entroloop.launcher.commands.entropy import entropy_command
from entroloop.launcher.commands.measure import measure_command
from entroloop.launcher.commands.select import select_command
from entroloop.selection import kl_entropy, select

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
WHOLE = np.random.default_rng(1).integers(-100, 100, (40, 3))
IMAGES = np.random.default_rng(2).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def by_import(path, tmp_path, key=None):
    """What was imported; entries of a folder that is not there yet."""
    dest = tmp_path / f"imported-{len(list(tmp_path.glob('imported-*')))}"
    import_dataset(str(path), dest, Settings(key=key))
    return Dataset(dest).all()


def by_measure(path, tmp_path, key=None):
    with opened_set(path, key=key) as found:
        assert found.rows is not None
        found.rows.check()
        return np.concatenate(list(found.blocks(slice(0, found.count))))


def by_select(path, tmp_path, key=None):
    done = tmp_path / "ids.npy"
    select_command(path, 9, done, seed=3, key=[key] if key else None)
    rows = open_rows(path, key)[:]
    np.testing.assert_array_equal(np.load(done), select(rows, 9, seed=3).ids)
    return np.asarray(rows, np.float32)


def by_entropy(path, tmp_path, key=None):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        entropy_command(path, key=key, as_json=True)
    rows = open_rows(path, key)[:]
    assert json.loads(printed.getvalue())["nats"] == kl_entropy(rows).nats
    return np.asarray(rows, np.float32)


COMMANDS = [by_import, by_measure, by_select, by_entropy]


def feature_folder(folder, encoders):
    """A sealed folder of features of 40 vectors, in blocks of 16."""
    np.save(folder / "x.npy", X)
    import_dataset(str(folder / "x.npy"), folder / "set", Settings(shard_size=16))
    made = {name: _Times(name, factor) for name, factor in encoders.items()}
    data = Dataset(folder / "set")
    for number in range(len(data.shard_names)):
        write_blocks(made, folder / "features", number, data.shard(number)[0])
    seal_blocks(len(data), len(data.shard_names), made, folder / "features", made_from={})
    return folder / "features"


class _Times:
    dim, digest = 3, "0" * 64

    def __init__(self, name, factor):
        self.name, self.factor = name, factor

    def __call__(self, samples):
        return samples * np.float32(self.factor)


def save(path, array=None, packed=False, **arrays):
    if array is not None:
        np.save(path, array)
    else:
        (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


READ: dict[str, Any] = {
    "single": (lambda f: save(f / "a.npy", X), None, X),
    "double": (lambda f: save(f / "a.npy", X.astype(np.float64)), None, X),
    "half": (lambda f: save(f / "a.npy", X.astype(np.float16)), None, X.astype(np.float16)),
    "big endian": (lambda f: save(f / "a.npy", X.astype(">f4")), None, X),
    "big-endian integers": (lambda f: save(f / "a.npy", WHOLE.astype(">i8")), None, WHOLE),
    "bytes": (lambda f: save(f / "a.npy", (WHOLE + 100).astype(np.uint8)), None, WHOLE + 100),
    "by columns": (lambda f: save(f / "a.npy", np.asfortranarray(X)), None, X),
    "the only array": (lambda f: save(f / "a.npz", whatever=X), None, X),
    "compressed": (lambda f: save(f / "a.npz", packed=True, whatever=X), None, X),
    "by columns, in an archive": (lambda f: save(f / "a.npz", whatever=np.asfortranarray(X)), None, X),
    "labels": (lambda f: save(f / "a.npz", y=np.arange(40), features=X), None, X),
    "other arrays": (lambda f: save(f / "a.npz", x=X, names=np.array(["a"] * 40), scale=np.float64(2)), None, X),
    "chosen": (lambda f: save(f / "a.npz", x=X, features=X[:20] * 2), "features", X[:20] * 2),
    "chosen, compressed": (lambda f: save(f / "a.npz", packed=True, x=X, features=X[:20] * 2), "features", X[:20] * 2),
    "features": (lambda f: feature_folder(f, {"pixel": 1}), None, X),
    "chosen features": (lambda f: feature_folder(f, {"pixel": 1, "twice": 2}), "twice", X * 2),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", READ)
def test_the_same_file_is_the_same_array(tmp_path, name, command):
    make, key, expected = READ[name]
    np.testing.assert_array_equal(command(make(tmp_path), tmp_path, key), expected.astype(np.float32))


def _cut(path, count=40):
    path.write_bytes(path.read_bytes()[:-count])
    return path


def _flip(path, content):
    """One bit of the data changed."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(content) + 40] ^= 1
    path.write_bytes(raw)
    return path


def _two_files(path):
    with path.open("wb") as file:
        np.save(file, X)
        np.save(file, X)
    return path


def _zip(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


REFUSED = {
    "several": (lambda f: save(f / "a.npz", x=X, features=X), None, "choose one with --key: x, features"),
    "one-hot": (lambda f: save(f / "a.npz", x=X, y=np.eye(40)), None, "choose one with --key: x, y"),
    "several encoders": (lambda f: feature_folder(f, {"a": 1, "b": 2}), None, "choose one with --key: a, b"),
    "no such key": (lambda f: save(f / "a.npz", x=X, y=X), "z", "a.npz holds no such array: give one of x, y"),
    "no such encoder": (lambda f: feature_folder(f, {"a": 1}), "z", "features holds no such array: give one of a"),
    "key of a single array": (lambda f: save(f / "a.npy", X), "x", "a.npy holds a single array, which has no name"),
    "labels only": (lambda f: save(f / "a.npz", y=np.arange(3)), None, "two or more dimensions (y int64 [3])"),
    "labels by key": (lambda f: save(f / "a.npz", x=X, y=np.arange(40)), "y", "int64 of shape [40]; expected vectors"),
    "no arrays": (lambda f: _zip(f / "a.npz", text="x"), None, "two or more dimensions (no arrays at all)"),
    "empty": (lambda f: (f / "a.npy").touch() or f / "a.npy", None, "a.npy: holds no rows: the file is empty"),
    "empty archive": (lambda f: (f / "a.npz").touch() or f / "a.npz", None, "a.npz: holds no rows: the file is empty"),
    "no rows": (lambda f: save(f / "a.npy", X[:0]), None, "a.npy: holds no rows"),
    "no columns": (lambda f: save(f / "a.npy", X[:, :0]), None, "a.npy: holds rows without numbers, shape [40, 0]"),
    "a line": (lambda f: save(f / "a.npy", X[0]), None, "a.npy: holds float32 of shape [3]; expected vectors"),
    "objects": (lambda f: save(f / "a.npy", np.array([{}, {}])), None, "a.npy: holds Python objects, not numbers"),
    "objects by key": (lambda f: save(f / "a.npz", x=np.array([[{}]])), "x", "a.npz: x: holds Python objects"),
    "texts": (lambda f: save(f / "a.npy", np.array([["a"]])), None, "a.npy: holds <U1: give integers, or floats"),
    "complex": (lambda f: save(f / "a.npy", X + 1j), None, "a.npy: holds complex64: give integers, or floats"),
    "too large": (lambda f: save(f / "a.npy", WHOLE + 2**24), None, "holds integers beyond 16,777,216, which float32"),
    "far too large": (lambda f: save(f / "a.npy", np.full((4, 2), 2**64 - 1, np.uint64)), None, "row 0 holds integers"),
    "far too small": (lambda f: save(f / "a.npy", np.full((4, 2), -(2**63))), None, "row 0 holds integers beyond"),
    "not finite": (lambda f: save(f / "a.npy", np.where(X[17] == X, np.nan, X)), None, "row 17 holds NaN or infinity"),
    "infinite": (lambda f: save(f / "a.npz", x=X * np.inf), None, "a.npz: x: row 0 holds NaN or infinity"),
    "beyond": (lambda f: save(f / "a.npy", X * np.float64(-1e40)), None, "row 0 holds numbers beyond the range of fl"),
    "cut": (lambda f: _cut(save(f / "a.npy", X)), None, "damaged: holds 440 bytes of data, but its header says 480"),
    "cut header": (lambda f: _cut(save(f / "a.npy", X), 590), None, "a.npy: damaged, or not a NumPy file"),
    "cut archive": (lambda f: _cut(save(f / "a.npz", x=X)), None, "a.npz: damaged, or not a NumPy file"),
    "a bit": (lambda f: _flip(save(f / "a.npz", x=X), X.tobytes()), None, "a.npz: damaged, or not a NumPy file"),
    "two in one": (
        lambda f: _two_files(f / "a.npy"),
        None,
        "a.npy: goes on after its array: keep several arrays in an .npz",
    ),
    "missing": (lambda f: f / "a.npy", None, "a.npy: no such file or folder"),
    "float images": (lambda f: save(f / "a.npy", IMAGES / 255), None, "images must be uint8 from 0 to 255"),
    "five": (lambda f: save(f / "a.npy", IMAGES[None]), None, "a.npy: holds uint8 of shape [1, 6, 5, 4, 3]; expected"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_one_refuses_all_refuse_in_one_line(tmp_path, name):
    make, key, message = REFUSED[name]
    path, said = make(tmp_path), set()
    for command in COMMANDS:
        with pytest.raises(UserError) as caught:
            command(path, tmp_path, key)
        said.add(str(caught.value).split(": did you mean")[0].split(": give a file, a folder")[0])
    (line,) = said
    assert message in line
    assert str(path) in line
    assert "\n" not in line
    assert "allow_pickle" not in line


@pytest.mark.parametrize("array", [IMAGES, IMAGES.transpose(0, 3, 1, 2)], ids=["HWC", "CHW"])
def test_images_are_the_same_in_every_order_and_no_vectors(tmp_path, array):
    path = save(tmp_path / "a.npz", images=array, labels=np.arange(6), packed=True)
    for command in (by_import, by_measure):
        np.testing.assert_array_equal(command(path, tmp_path), IMAGES.transpose(0, 3, 1, 2))
    for command in (by_select, by_entropy):
        with pytest.raises(UserError, match=r"a.npz: images: holds images, but vectors \[N, D\] are needed"):
            command(path, tmp_path)


def test_labels_are_the_integers_as_long_as_the_chosen_rows(tmp_path):
    np.savez(tmp_path / "split.npz", x=X, y=np.arange(40)[:, None], x_test=X[:7], y_test=np.arange(7) + 1)
    for key, labels in (("x", range(40)), ("x_test", range(1, 8))):
        import_dataset(str(tmp_path / "split.npz"), tmp_path / key, Settings(key=key))
        assert present(Dataset(tmp_path / key).labels).tolist() == list(labels)
    with pytest.raises(UserError, match=r"holds an import made otherwise \(key 'x' there, 'x_test' now"):
        import_dataset(str(tmp_path / "split.npz"), tmp_path / "x", Settings(key="x_test"))
    np.savez(tmp_path / "both.npz", x=X, a=np.arange(40), b=np.arange(40))
    import_dataset(str(tmp_path / "both.npz"), tmp_path / "both", Settings(labels=False))
    assert Dataset(tmp_path / "both").labels is None


def test_a_key_where_nothing_has_a_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--key x: iris has no arrays with names$"):
        import_dataset("iris", tmp_path / "iris", Settings(key="x"))


def test_keys_are_for_sets_with_named_arrays(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.npy", "b.npz", "c.npz"))
    assert keys_of([a, b, c], []) == [None, None, None]
    assert keys_of([a, b, c], ["x"]) == [None, "x", "x"]
    assert keys_of([a, b, c], ["x", "y"]) == [None, "x", "y"]
    for keys in (["x", "y", "z"], ["x", "x"]):
        with pytest.raises(UserError, match=r"--key x .* one for each of 1 sets with named arrays"):
            keys_of([a, b], keys)
    assert keys_of([a], ["x"]) == ["x"], "which `open_rows` then refuses"


def test_each_set_of_measure_and_select_has_its_key(tmp_path):
    path, generated = tmp_path / "split.npz", tmp_path / "generated.npy"
    np.savez(path, x_train=X[:20], x_test=X[20:])
    np.save(generated, X[:20])
    app = typer.Typer()
    app.command()(measure_command)
    keys = ["--key", "x_train", "--key", "x_test"]
    done = CliRunner().invoke(app, [*map(str, (generated, path, path)), *keys, "--json"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert row == compare.compare(generated, path, path, keys=["x_train", "x_test"])
    assert row["generalization_score"] == 0
    assert row["context"]["keys"] == {"generated": None, "training": "x_train", "reference": "x_test"}
    out = tmp_path / "ids.npy"
    select_command(path, 5, out, "entropy-matching", reference=path, key=["x_train", "x_test"])
    done = json.loads(out.with_suffix(".json").read_text())["context"]
    assert (done["features"]["key"], done["reference"]["key"]) == ("x_train", "x_test")


def test_float64_is_kept_by_select_and_entropy(tmp_path):
    """Far from the origin float32 would hold few digits."""
    far = X.astype(np.float64) + 1e9
    entropy_command(save(tmp_path / "far.npy", far), as_json=True)
    assert open_rows(tmp_path / "far.npy")[:].dtype == np.float64


def test_rows_are_read_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("entroloop.data.sources.rows._BLOCK_BYTES", 1 << 16)
    path = tmp_path / "a.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.float64, (50_000, 40))
    stored[49_999, 7] = np.nan
    stored.flush()
    tracemalloc.start()
    assert open_rows(path).problem() == f"{path}: row 49999 holds NaN or infinity"
    assert open_rows(path).problem(slice(0, 49_999)) is None
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_rows_of_several_blocks_are_one_collection(tmp_path):
    rows = open_rows(feature_folder(tmp_path, {"pixel": 1}))
    assert len(rows.parts) == 3
    assert (len(rows), rows.shape) == (40, (3,))
    for some in (5, slice(10, 35), np.array([39, 0, 17, 17])):
        np.testing.assert_array_equal(rows[some], X[some])
