"""Round trips of every kind of source, with small real files made here."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import tarfile
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import made_by_others
import numpy as np
import pytest
from PIL import Image
from present import present
from sklearn.datasets import load_wine

from entroloop.data import registry
from entroloop.data.catalogue import SOURCES
from entroloop.data.encode import encode
from entroloop.data.errors import UserError
from entroloop.data.seeds import Part
from entroloop.data.sources import recognise
from entroloop.data.sources.base import ArraySource
from entroloop.data.sources.importer import import_dataset, import_part
from entroloop.data.sources.settings import Settings
from entroloop.data.store.dataset import Dataset
from entroloop.data.take import take

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
NAMES = ["b/1.png", "a/sub dir/2.png", "a/ü.png", "../b/x.png", "b/y.png", "a/z.png"]
ORDER = sorted(range(6), key=lambda i: NAMES[i])


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(out, "PNG")
    return out.getvalue()


PNGS = [png(image) for image in IMAGES]


def imported(source: Path | str, **kwargs) -> Dataset:
    dest = Path(kwargs.pop("dest"))
    import_dataset(str(source), dest, Settings(**kwargs))
    return Dataset(dest)


def refused(source: Path | str, message: str, dest: Path, **kwargs) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_dataset(str(source), dest, Settings(**kwargs))
    assert "\n" not in str(caught.value)
    assert not list(dest.glob("*.tar"))


# --- words --------------------------------------------------------------------------------------------------------


def test_wine_is_standardised_with_labels(tmp_path: Path):
    dataset = imported("wine", dest=tmp_path / "d")
    x, y = load_wine(return_X_y=True)
    assert (dataset.manifest.kind, dataset.shape, dataset.num_classes) == ("vectors", (13,), 3)
    assert np.allclose(dataset.all(), (x - x.mean(0)) / x.std(0), atol=1e-6)
    assert np.array_equal(present(dataset.labels), y)
    assert dataset.manifest.about["classes"] == ["class_0", "class_1", "class_2"]


def test_mixture_is_eight_gaussians_and_repeats(tmp_path: Path):
    dataset = imported("mixture", dest=tmp_path / "d")
    points, labels = dataset.all(), dataset.labels
    assert points.shape == (10_000, 2)
    assert np.allclose(points.var(0), 1, atol=0.05)
    for k in range(8):
        mine = points[labels == k]
        assert np.allclose(
            mine.mean(0), np.sqrt(2) * np.array([np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)]), atol=0.02
        )
        assert np.allclose(mine.std(0), 0.12, atol=0.01)
    assert imported("mixture", dest=tmp_path / "e").manifest == dataset.manifest
    refused("mixture", "holds vectors, which have none", tmp_path / "x", resolution=4)


# --- NumPy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (IMAGES, IMAGES),
        (IMAGES.transpose(0, 2, 3, 1), IMAGES),
        (IMAGES[:, 0], IMAGES[:, :1]),
        (np.arange(12.0).reshape(6, 2), np.arange(12, dtype=np.float32).reshape(6, 2)),
        (np.arange(12).reshape(6, 2), np.arange(12, dtype=np.float32).reshape(6, 2)),
    ],
    ids=["CHW", "HWC", "grey", "float64 vectors", "whole vectors"],
)
def test_numpy_arrays(tmp_path: Path, array, expected):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", images=array, labels=np.array([5, 0, 1, 1, 2, 3], np.uint8))
    plain, labelled = (imported(tmp_path / f"a.{s}", dest=tmp_path / s) for s in ("npy", "npz"))
    assert np.array_equal(plain.all(), expected)
    assert plain.all().dtype == expected.dtype
    assert plain.labels is None
    assert np.array_equal(labelled.all(), expected)
    assert present(labelled.labels).tolist() == [5, 0, 1, 1, 2, 3]


def test_bad_numpy_files_are_named(tmp_path: Path):
    x = np.ones((4, 3), np.float32)
    cases = {
        "float-images.npy": (IMAGES / 255.0, "images must be uint8 from 0 to 255, these are float64"),
        "five.npy": (np.zeros((1, 2, 3, 4, 5)), "expected vectors"),
        "nan.npy": (np.array([[0, 1], [np.nan, 1]]), "nan.npy: row 1 holds NaN or infinity"),
        "none.npy": (np.zeros((0, 3)), "none.npy: holds no rows"),
        "objects.npy": (np.array([{}, {}]), "objects.npy: holds Python objects, not numbers"),
    }
    for name, (array, message) in cases.items():
        np.save(tmp_path / name, array)
        refused(tmp_path / name, message, tmp_path / "out")
    np.savez(tmp_path / "few.npz", x=x, y=np.zeros(3, int))
    refused(tmp_path / "few.npz", "few.npz: y: 3 labels for 4 rows", tmp_path / "out")
    np.savez(tmp_path / "below.npz", x=x, y=np.array([0, 1, -5, 1]))
    refused(tmp_path / "below.npz", "below.npz: below/2 has the label -5: labels go from 0", tmp_path / "out")
    np.savez(tmp_path / "both.npz", x=x, y=np.arange(4), z=np.arange(4))
    refused(tmp_path / "both.npz", "y and z could all be the labels: keep one, or give --no-labels", tmp_path / "out")
    name = os.fsdecode(b"caf\xe9.npz")  # no UTF-8
    np.savez(tmp_path / name, x=x, y=np.arange(4), notes=x[0])
    source = recognise.open_source(str(tmp_path / name))
    assert (source.names[0], source.ignored) == ("caf\\xe9/0", {"caf\\xe9/notes": "of another kind"})
    with (tmp_path / "two.npy").open("wb") as file:
        np.save(file, x)
        np.save(file, x)
    refused(tmp_path / "two.npy", "two.npy: goes on after its array", tmp_path / "out")
    head = b"{'descr': ('<f4', 'fortran_order': False, 'shape': (4, 3), }".ljust(117) + b"\n"  # numpy: TokenError
    (tmp_path / "head.npy").write_bytes(b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head + bytes(48))
    refused(tmp_path / "head.npy", "head.npy: damaged, or not a NumPy file", tmp_path / "out")
    for name in ("nan.npy", "few.npz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
        refused(path, f"{name}: damaged", tmp_path / "out")


# --- CIFAR --------------------------------------------------------------------------------------------------------


def cifar_files(kind: str) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files of a small CIFAR of four images a batch, and all images and labels in the order of batches."""
    ten, python = kind.startswith("cifar-10-"), kind.endswith("python")
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if ten else ["train", "test"]
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (len(batches), 4, 3072), dtype=np.uint8)
    labels = random.integers(0, 10 if ten else 100, (len(batches), 4))
    files = {}
    for name, x, y in zip(batches, pixels, labels, strict=True):
        if python:
            key = b"labels" if ten else b"fine_labels"
            files[name] = pickle.dumps({b"data": x, key: y.tolist(), b"batch_label": b"x"}, protocol=2)
        else:
            coarse = np.zeros((4, 0 if ten else 1), np.uint8)
            files[f"{name}.bin"] = np.hstack([coarse, y[:, None].astype(np.uint8), x]).tobytes()
    classes = [f"class{i}" for i in range(10 if ten else 100)]
    if python:
        key = b"label_names" if ten else b"fine_label_names"
        files["batches.meta" if ten else "meta"] = pickle.dumps({key: [c.encode() for c in classes]}, protocol=2)
    else:
        files["batches.meta.txt" if ten else "fine_label_names.txt"] = "\n".join(classes).encode()
    return files, pixels.reshape(-1, 3, 32, 32), labels.reshape(-1)


def archive(path: Path, files: dict[str, bytes], mode="w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, payload in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


@pytest.mark.parametrize("kind", ["cifar-10-python", "cifar-10-binary", "cifar-100-python", "cifar-100-binary"])
def test_cifar_archives_and_folders(tmp_path: Path, kind: str):
    files, images, labels = cifar_files(kind)
    path = archive(tmp_path / f"{kind}.tar.gz", {f"{kind}/{name}": raw for name, raw in files.items()}, "w:gz")
    (tmp_path / "folder").mkdir()
    for name, raw in files.items():
        (tmp_path / "folder" / name).write_bytes(raw)
    for split, rows in (("train", slice(0, -4)), ("test", slice(-4, None))):
        datasets = [imported(s, dest=tmp_path / f"{s.name}-{split}", split=split) for s in (path, tmp_path / "folder")]
        assert datasets[0].manifest == datasets[1].manifest
        assert np.array_equal(datasets[0].all(), images[rows])
        assert np.array_equal(present(datasets[0].labels), labels[rows])
        assert datasets[0].manifest.about["classes"][:2] == ["class0", "class1"]


def test_both_versions_of_cifar_give_the_same_set(tmp_path: Path):
    manifests = []
    for kind in ("cifar-10-python", "cifar-10-binary"):
        path = archive(tmp_path / f"{kind}.tar.gz", cifar_files(kind)[0], "w:gz")
        manifests.append(imported(path, dest=tmp_path / kind).manifest)
    assert manifests[0] == manifests[1]


def test_copies_and_other_files_beside_cifar_are_told(tmp_path: Path):
    for name, raw in cifar_files("cifar-100-binary")[0].items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "0.png").write_bytes(PNGS[0])
    source = recognise.open_source(str(tmp_path))
    assert source.ignored == {"0.png": "of another kind", "test.bin": "of another split"}
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.bin").write_bytes(b"")
    refused(tmp_path, "holds copy/train.bin and train.bin: keep one", tmp_path.with_name("out"))


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_damaged_and_malicious_cifar_is_refused(tmp_path: Path):
    files, _, _ = cifar_files("cifar-10-python")
    refused(archive(tmp_path / "a.tar", {**files, "data_batch_2": b"junk"}), "data_batch_2: damaged", tmp_path / "o")
    bad = pickle.dumps({b"data": Malicious()}, protocol=2)
    refused(
        archive(tmp_path / "b.tar", {**files, "data_batch_2": bad}), "refers to .*exec, which no CIFAR", tmp_path / "o"
    )
    wrong = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2)
    path = archive(tmp_path / "w.tar", {**files, "data_batch_1": wrong})
    refused(path, "train/00 has the label 10: labels go from 0 to 9", tmp_path / "o")
    missing = {name: raw for name, raw in files.items() if name != "data_batch_3"}
    refused(archive(tmp_path / "c.tar", missing), "CIFAR-10 python without data_batch_3", tmp_path / "o")
    cut = archive(tmp_path / "d.tar.gz", files, "w:gz")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    refused(cut, "d.tar.gz: damaged or truncated archive", tmp_path / "o")


# --- zip ----------------------------------------------------------------------------------------------------------


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, payload in files.items():
            out.writestr(name, payload)
    return path


def test_zip_with_odd_names_and_folders_as_classes(tmp_path: Path):
    path = make_zip(
        tmp_path / "a.zip", {**dict(zip(NAMES, PNGS, strict=True)), "README": b"", "__MACOSX/b/._1.png": b""}
    )
    before = set(tmp_path.parent.rglob("*"))
    dataset = imported(path, dest=tmp_path / "out")
    made = set(tmp_path.parent.rglob("*")) - before
    assert all(p.is_relative_to(tmp_path / "out") for p in made)
    assert list(dataset.provenance.source) == [NAMES[i] for i in ORDER]
    assert np.array_equal(dataset.all(), IMAGES[ORDER])
    assert present(dataset.labels).tolist() == ["ab".index("a" if "a/" in NAMES[i] else "b") for i in ORDER]


def test_zip_with_edm_labels(tmp_path: Path):
    names = [f"00000/img0000000{i}.png" for i in range(6)]
    labels = [[name, (5 - i) % 4] for i, name in enumerate(names)]
    files = dict(zip(names, PNGS, strict=True))
    path = make_zip(tmp_path / "a.zip", {**files, "dataset.json": json.dumps({"labels": labels[::-1]}).encode()})
    assert present(imported(path, dest=tmp_path / "a").labels).tolist() == [label for _, label in labels]
    path = make_zip(tmp_path / "b.zip", {**files, "dataset.json": b'{"labels": null}'})
    assert imported(path, dest=tmp_path / "b").labels is None
    path = make_zip(tmp_path / "c.zip", {**files, "dataset.json": json.dumps({"labels": labels[1:]}).encode()})
    refused(path, "1 of 6 samples have no label, first 00000/img00000000.png", tmp_path / "c")
    path = make_zip(tmp_path / "d.zip", {**files, "dataset.json": json.dumps({"labels": [[names[0], 0.5]]}).encode()})
    refused(path, "the label 0.5, not a whole number", tmp_path / "d")
    gone = json.dumps({"labels": [*labels, ["00000/img9.png", 1]]}).encode()
    refused(
        make_zip(tmp_path / "g.zip", {**files, "dataset.json": gone}),
        "labels 00000/img9.png, which is not there",
        tmp_path / "g",
    )
    twice = json.dumps({"labels": [[names[0], 1], [names[0], 2]]}).encode()
    refused(make_zip(tmp_path / "f.zip", {**files, "dataset.json": twice}), "gives .* two labels", tmp_path / "f")
    path = make_zip(tmp_path / "e.zip", {**files, "dataset.json": b"{"})
    refused(path, "dataset.json: damaged", tmp_path / "e")


def test_damaged_zips_are_named(tmp_path: Path):
    path = make_zip(tmp_path / "a.zip", dict(zip(NAMES, PNGS, strict=True)))
    whole = path.read_bytes()
    raw = bytearray(whole)
    at = raw.index(PNGS[1][:60]) + 50
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    refused(path, r"a.zip: a/sub dir/2.png: damaged or not an image \(Bad CRC-32", tmp_path / "out")
    path.write_bytes(whole[:-30])
    refused(path, "a.zip: damaged or truncated zip", tmp_path / "out")
    refused(make_zip(tmp_path / "none.zip", {"a.txt": b""}), "none.zip: holds no images", tmp_path / "out")


# --- tar ----------------------------------------------------------------------------------------------------------


def test_webdataset_tars_of_others_keep_their_order(tmp_path: Path):
    (tmp_path / "src").mkdir()
    samples = [(f"k{i}", PNGS[i], str(i % 3)) for i in (3, 1, 0)], [(f"n ü{i}", PNGS[i], str(i % 3)) for i in (5, 2, 4)]
    for name, part in zip(("b.tar", "c.tar"), samples, strict=True):
        files = {f"{k}.{s}": v for k, x, y in part for s, v in (("cls", y.encode()), ("json", b"{}"), ("png", x))}
        archive(tmp_path / "src" / name, files)
    dataset = imported(tmp_path / "src", dest=tmp_path / "out")
    assert np.array_equal(dataset.all(), IMAGES[[3, 1, 0, 5, 2, 4]])
    assert present(dataset.labels).tolist() == [0, 1, 0, 2, 2, 1]
    assert dataset.provenance.source[0] == "b.tar/k3.png"
    assert dataset.provenance.source[3] == "c.tar/n ü5.png"
    assert dataset.manifest.about["import"]["ignored"] == {"of another kind": 6}


def test_plain_tars_have_classes_by_folder(tmp_path: Path):
    path = archive(tmp_path / "a.tar", dict(zip(NAMES, PNGS, strict=True)))
    dataset = imported(path, dest=tmp_path / "out")
    assert np.array_equal(dataset.all(), IMAGES)
    assert present(dataset.labels).tolist() == [1, 0, 0, 1, 1, 0]


def test_odd_tars_are_refused(tmp_path: Path):
    out = tmp_path / "out"
    one = {"k.png": PNGS[0], "k.cls": b"1"}
    refused(archive(tmp_path / "a.tar", {**one, "l.png": PNGS[1]}), "1 of 2 samples have no label, first l.png", out)
    for number, labels in enumerate(({}, {"k.cls": b"1"})):
        path = archive(tmp_path / f"b{number}.tar", {"k.png": PNGS[0], **labels, "k.jpg": PNGS[1]})
        refused(path, "k.png and k.jpg are two images of one sample", out)
    refused(archive(tmp_path / "c.tar", {**one, "l.cls": b"1"}), "l.cls is a label without an image", out)
    for label in (b"cat", b"-1", b"9" * 200):
        refused(archive(tmp_path / "d.tar", {"k.png": PNGS[0], "k.cls": label}), "k.cls: holds .*, not a whole", out)
    refused(archive(tmp_path / "e.tar.gz", one, "w:gz"), "gunzip it first", out)
    path = archive(tmp_path / "f.tar", one)
    for keep in (1024, 1024 + 512, 700):
        path.write_bytes(archive(tmp_path / "g.tar", one).read_bytes()[:keep])
        refused(path, "f.tar: (damaged or )?truncated", out)
    refused(archive(tmp_path / "h.tar", {"k.png": b"junk"}), "h.tar: k.png: damaged or not an image", out)
    refused(archive(tmp_path / "i.tar", {}), "holds no samples", out)


# --- Parquet ------------------------------------------------------------------------------------------------------


def test_parquet_of_the_hub(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for split, rows in (("train", range(5)), ("test", range(5, 6))):
        table = pa.table(
            {
                "image": [{"bytes": PNGS[i], "path": f"{i}.png"} for i in rows],
                "label": pa.array([i % 2 for i in rows], pa.int64()),
            }
        ).replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet", row_group_size=2)
    dataset = imported(tmp_path, dest=tmp_path.parent / f"{tmp_path.name}-out")
    assert np.array_equal(dataset.all(), IMAGES[:5])
    assert present(dataset.labels).tolist() == [0, 1, 0, 1, 0]
    assert dataset.manifest.about["classes"] == ["cat", "dog"]
    test = imported(tmp_path / "data", dest=tmp_path.parent / f"{tmp_path.name}-test", split="test")
    assert np.array_equal(test.all(), IMAGES[5:])


def test_parquet_of_plain_bytes_missing_labels_and_damage(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"picture": PNGS}), tmp_path / "a.parquet")
    assert np.array_equal(imported(tmp_path / "a.parquet", dest=tmp_path / "out").all(), IMAGES)
    pq.write_table(pa.table({"img": PNGS, "label": pa.array([0, None, 1, 1, 1, 1])}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "1 of 6 samples have no label, first b.parquet/1", tmp_path / "x")
    for number, message in (
        (200, ""),
        (-2, "parquet/1 has the label -2: labels go from 0"),
        (2**31, "has the"),
        (2**63, "not in range"),
    ):
        kind = pa.uint64() if number > 0 else pa.int8()
        table = pa.table({"img": PNGS, "label": pa.array([0, number, 1, 1, 1, 1], kind)})
        pq.write_table(table, tmp_path / "e.parquet")
        if message:
            refused(tmp_path / "e.parquet", message, tmp_path / "x")
        else:
            assert present(imported(tmp_path / "e.parquet", dest=tmp_path / "e").labels).tolist() == [
                0,
                200,
                1,
                1,
                1,
                1,
            ]
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "c.parquet")
    refused(tmp_path / "c.parquet", "no column of images among text", tmp_path / "x")
    (tmp_path / "d.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-10])
    refused(tmp_path / "d.parquet", "d.parquet: damaged or not Parquet", tmp_path / "x")


def test_tables_in_folders_are_splits_and_keep_names_apart(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for name in ("a/train/0.parquet", "b/train/0.PARQUET", "a/test/0.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": PNGS[:1]}), tmp_path / name)
    source = recognise.open_source(str(tmp_path))
    assert list(source.names) == ["a/train/0.parquet/0", "b/train/0.PARQUET/0"]
    assert source.ignored == {"a/test/0.parquet": "of another split", "notes.txt": "of another kind"}


def test_tables_with_other_columns_are_refused(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": PNGS, "label": range(6)}), tmp_path / "a.parquet")
    for columns in ({"image": PNGS}, {"img": PNGS, "label": range(6)}):
        pq.write_table(pa.table(columns), tmp_path / "b.parquet")
        refused(tmp_path, "b.parquet: has other columns .* than a.parquet", tmp_path.parent / "x")


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_a_file_that_was_made_anew_between_two_imports_is_read_anew(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    for number in (0, 1):
        if kind == "parquet":
            pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            pq.write_table(pa.table({"image": PNGS[number:][:1]}), tmp_path / "new")
        else:
            {"zip": make_zip, "tar": archive}[kind](tmp_path / "new", {"0.png": PNGS[number]})
        (tmp_path / "new").rename(path)
        assert np.array_equal(imported(path, dest=tmp_path / f"{number}").all(), IMAGES[number:][:1])


def test_more_tars_than_files_may_be_open(tmp_path: Path):
    for number in range(200):
        archive(tmp_path / f"{number:03d}.tar", {"0.png": PNGS[number % 6]})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    source = recognise.open_source(str(tmp_path))
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, limits[1]))
    try:
        assert sum(1 for _ in source.read(range(200))) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- other --------------------------------------------------------------------------------------------------------


def test_a_sealed_set_is_a_source(tmp_path: Path):
    first = imported("digits", dest=tmp_path / "a", shard_size=500)
    second = imported(tmp_path / "a", dest=tmp_path / "b", resolution=4, limit=700)
    assert second.shape == (1, 4, 4)
    assert first.labels is not None
    assert second.labels is not None
    assert np.array_equal(present(second.labels), first.labels[:700])
    blocks = first.all()[:700].reshape(700, 1, 4, 2, 4, 2).mean((3, 5))
    assert np.abs(second.all() - blocks).max() <= 0.5
    assert second.provenance.source == first.provenance.source[:700]


@pytest.mark.parametrize("work", ["import", "encode", "take"])
def test_a_folder_that_is_not_sealed_is_no_source(tmp_path: Path, work: str):
    source, out = made_by_others.make("tars", tmp_path), tmp_path / "out"
    begin = {
        "import": lambda: import_part(str(source), out, Settings(shard_size=20), Part(0, 2)),
        "encode": lambda: encode(source, out, ["pixel"], part=Part(0, 1)),
        "take": lambda: take(source, [3, 1], out, "folder", part=Part(0, 1)),
    }
    begin[work]()
    refused(out, f"out: unfinished: complete it with the same entroloop {work}", tmp_path / "new")
    (out / f"{work}.json").unlink()
    if work == "import":
        refused(out, "out: not sealed .no manifest.json.", tmp_path / "new")


@pytest.mark.parametrize("kind", ["RGBA", "P", "I;16", "CMYK", "1", "LA"])
def test_every_mode_of_images_becomes_eight_bits(tmp_path: Path, kind: str):
    (tmp_path / "src").mkdir()
    if kind == "I;16":
        image = Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
        expected = np.rint(np.arange(64).reshape(1, 8, 8) * 1000 * 255 / 65535)
    else:
        image = Image.fromarray(IMAGES[0].transpose(1, 2, 0)).convert(kind)
        mode = "L" if kind in ("1", "LA") else "RGB"
        array = np.asarray(image.convert(mode))
        expected = array[None] if mode == "L" else array.transpose(2, 0, 1)
    image.save(tmp_path / "src" / ("a.tif" if kind == "CMYK" else "a.png"))
    assert np.array_equal(imported(tmp_path / "src", dest=tmp_path / "out").all()[0], expected)


def test_transparent_parts_become_white_and_cameras_are_turned(tmp_path: Path):
    (tmp_path / "src").mkdir()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "src" / "a.png")
    assert (imported(tmp_path / "src", dest=tmp_path / "a").all() == 255).all()
    (tmp_path / "turned").mkdir()
    tall = np.zeros((8, 16), np.uint8)
    tall[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(tall).save(tmp_path / "turned" / "a.jpg", exif=exif, quality=100)
    dataset = imported(tmp_path / "turned", dest=tmp_path / "b")
    assert dataset.shape == (1, 16, 8)
    assert dataset.all()[0, 0, :7].max() < 10
    assert dataset.all()[0, 0, 9:].min() > 245


def test_gzipped_idx_is_recognised_by_content(tmp_path: Path):
    raw = b"\0\0\x08\x03" + np.array([2, 3, 3], ">u4").tobytes() + bytes(range(18))
    (tmp_path / "pictures").write_bytes(gzip.compress(raw))
    assert recognise.open_source(str(tmp_path / "pictures")).kind == "IDX"
    assert imported(tmp_path / "pictures", dest=tmp_path / "out").all().reshape(-1).tolist() == list(range(18))


def numbers():
    return ArraySource("numbers", "numbers", np.arange(12, dtype=np.float32).reshape(6, 2), None)


def nothing():
    return None


def test_a_function_of_the_users_own_is_a_source(tmp_path):
    dataset = imported(f"{__name__}:numbers", dest=tmp_path / "set")
    assert np.array_equal(dataset.all(), np.arange(12, dtype=np.float32).reshape(6, 2))
    with pytest.raises(UserError, match="nothing: returned NoneType, which lacks kind, where"):
        recognise.open_source(f"{__name__}:nothing")
    with pytest.raises(UserError, match="cannot import no_such_module"):
        recognise.open_source("no_such_module:f")


def test_the_catalogue_knows_the_shapes_of_sources_by_name():
    for name, facts in SOURCES.built_in.items():
        source = recognise.open_source(name)
        assert isinstance(source, ArraySource)
        assert source.array.shape[1:] == facts.shape


def table(given):
    if given.is_folder or given.path.suffix != ".csv":
        return None
    given.no_splits()
    rows = np.loadtxt(given.path, np.float32, delimiter=",", ndmin=2)
    return ArraySource("table", str(given.path), rows, None, prefix=f"{given.path.stem}/")


def test_an_installed_package_adds_a_format(tmp_path, monkeypatch):
    (tmp_path / "points.csv").write_text("1,2\n3,4\n5,6\n")
    with pytest.raises(UserError, match=r"points.csv: not a kind of data set that can be imported"):
        recognise.open_source(str(tmp_path / "points.csv"))
    point = EntryPoint("table", f"{__name__}:table", "entroloop.formats")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "entroloop.formats" else [])
    source = recognise.open_source(str(tmp_path / "points.csv"))
    assert [row.tolist() for row in source.read([2, 0])] == [[5, 6], [1, 2]]
    with pytest.raises(UserError, match=r"--split test: .* has no splits"):
        recognise.open_source(str(tmp_path / "points.csv"), "test")
    assert recognise.open_source("iris").kind == "iris"
