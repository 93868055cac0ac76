from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from places import small_disk
from present import present

from entroloop.data.errors import UserError
from entroloop.data.store import manifest, shards
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.shards import Provenance, read_shard, seal_dataset, write_shard

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
RGB = rng.integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)
VECTORS = rng.normal(size=(6, 2)).astype(np.float32)
LABELS = np.array([3, 0, 1, 2, 9, 4])


def write(folder: Path, samples=GREY, labels=LABELS, number=0, **kwargs) -> Path:
    kwargs.setdefault("first_key", 0)
    write_shard(folder, number, samples, labels, Provenance.sampled(2, 10, 10 + len(samples)), **kwargs)
    return folder / shards.shard_name(number)


def damaged(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_shard(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- writing and reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [GREY, RGB, VECTORS], ids=["grey", "rgb", "vectors"])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_round_trip(tmp_path: Path, samples, labels, encoding):
    back, back_labels = read_shard(write(tmp_path, samples, labels, encoding=encoding))
    assert back.dtype == samples.dtype
    assert np.array_equal(back, samples)
    assert (back_labels is None) if labels is None else np.array_equal(present(back_labels), labels)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40)))
)
@settings(max_examples=60, deadline=None)
def test_png_is_lossless_for_any_image_and_other_readers_agree(images):
    for image, payload in zip(images, shards.encode_pngs(images), strict=True):
        assert np.array_equal(shards.decode("x.png", payload), image)
        with Image.open(io.BytesIO(payload)) as opened:
            opened.verify()


def test_bytes_repeat_and_hold_nothing_of_the_machine(tmp_path: Path):
    paths = [write(tmp_path / name) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].with_suffix(".json").read_bytes() == paths[1].with_suffix(".json").read_bytes()
    with tarfile.open(paths[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)


def test_webdataset_reads_our_shards(tmp_path: Path):
    path = write(tmp_path, RGB, LABELS, first_key=7)
    found = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == [f"{i:09d}" for i in range(7, 13)]
    assert np.array_equal(np.stack([sample["png"] for sample in found]).transpose(0, 3, 1, 2), RGB)
    assert [sample["cls"] for sample in found] == LABELS.tolist()


def test_content_hash_is_of_pixels_and_labels_not_of_encoding(tmp_path: Path):
    hashes = []
    for name, encoding, labels in (("a", "png", LABELS), ("b", "npy", LABELS), ("c", "png", LABELS[::-1])):
        side = write(tmp_path / name, labels=labels, encoding=encoding).with_suffix(".json")
        hashes.append(json.loads(side.read_text())["content_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_complete_shard_is_left_alone_and_a_tar_without_its_side_is_kept(tmp_path: Path):
    path = write(tmp_path)
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    write(tmp_path, RGB)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    path.with_suffix(".json").unlink()  # killed between the two files
    write(tmp_path)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before


def test_full_disk_leaves_nothing_and_goes_on_later(tmp_path: Path):
    images = rng.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
    provenance = Provenance.sampled(0, 0, 100)
    with small_disk(tmp_path / "disk", "400k") as disk:
        write(disk, GREY)
        with pytest.raises(UserError, match=r"shard-000001.tar: no space left"):
            write_shard(disk, 1, images, None, provenance, first_key=6)
        assert sorted(path.name for path in disk.iterdir()) == ["shard-000000.json", "shard-000000.tar"]
        write_shard(disk, 1, GREY, LABELS, Provenance.sampled(0, 0, 6), first_key=6)
        assert seal_dataset(disk).count == 12


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024, 4000])
def test_truncated_tars_are_named(tmp_path: Path, keep: int):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    damaged(path, "damaged shard")


def test_a_tar_cut_between_members_is_not_taken_for_a_shorter_one(tmp_path: Path):
    path = write(tmp_path, labels=None)
    with tarfile.open(path) as tar:
        third = tar.getmembers()[3].offset
    path.write_bytes(path.read_bytes()[:third])
    damaged(path, "damaged shard")


def test_flipped_bytes_are_noticed(tmp_path: Path):
    path = write(tmp_path, RGB)
    manifest.seal(tmp_path, "images", 6, [path.name])
    raw = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        raw[tar.getmembers()[0].offset_data + 60] ^= 0xFF
    path.write_bytes(raw)
    damaged(path, "at sample 000000000")
    assert "content changed" in manifest.problems(tmp_path)[0]


def foreign(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


PNG = shards.encode_pngs(GREY)
OTHER = shards.encode_pngs(RGB)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "damaged shard"),
        ([("0.txt", b"text")], "damaged shard, at sample 0"),
        ([("0.png", PNG[0]), ("1.png", OTHER[0])], "same shape"),
        (
            [("0.png", PNG[0]), ("0.cls", b"1"), ("1.png", PNG[1])],
            "at sample 1: 2 samples and 1 labels do not go together",
        ),
        ([("0.png", PNG[0]), ("0.cls", b"cat")], "at sample 0: invalid literal"),
        ([("0.cls", b"1"), ("1.png", PNG[0]), ("1.cls", b"1"), ("2.png", PNG[1])], "do not go together"),
        ([("0.png", PNG[0]), ("0.png", PNG[1])], "at sample 0: appears twice"),
        ([("0.png", b"no image")], "at sample 0"),
    ],
    ids=["empty", "other file", "shapes", "label missing", "label no number", "label of nothing", "twice", "no image"],
)
def test_foreign_tars_are_refused(tmp_path: Path, members, message):
    damaged(foreign(tmp_path / "shard-000000.tar", members), message)


def test_missing_shard_is_named(tmp_path: Path):
    damaged(tmp_path / "shard-000000.tar", "no such file")


# --- sealed sets --------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for number, part in enumerate((slice(0, 3), slice(3, 4), slice(4, 6))):
        provenance = Provenance(np.full(6, -1), np.arange(6), tuple("abcdef")).take(part)
        write_shard(tmp_path, number, GREY[part], LABELS[part], provenance, first_key=part.start)
    seal_dataset(tmp_path, about={"classes": ["x"]}, made_from={"source": "s"})
    return Dataset(tmp_path)


def test_dataset_gives_samples_labels_and_provenance_by_number(dataset: Dataset):
    assert (len(dataset), dataset.shape, dataset.labelled, dataset.num_classes) == (6, (1, 8, 8), True, 10)
    assert dataset.starts.tolist() == [0, 3, 4, 6]
    assert np.array_equal(dataset.all(), GREY)
    rows = np.array([5, 0, 3, 0, 4])
    assert np.array_equal(dataset.take(rows), GREY[rows])
    assert dataset.take(rows[:0]).shape == (0, 1, 8, 8)
    assert np.array_equal(present(dataset.labels), LABELS)
    assert dataset.provenance.source == tuple("abcdef")
    assert dataset.provenance.take(rows).source == ("f", "a", "d", "a", "e")
    assert dataset.manifest.about["classes"] == ["x"]
    assert dataset.manifest.made_from == {"source": "s"}
    assert manifest.problems(dataset.folder) == []


def test_a_shard_replaced_by_a_shorter_one_is_noticed(dataset: Dataset, tmp_path_factory):
    other = write(tmp_path_factory.mktemp("other"), GREY[:2], LABELS[:2])
    (dataset.folder / "shard-000000.tar").write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"shard-000000.tar: holds 2 samples instead of the sealed 3"):
        dataset.shard(0)


def test_a_shard_replaced_by_another_valid_one_is_noticed(dataset: Dataset, tmp_path_factory):
    other = write(tmp_path_factory.mktemp("other"), GREY[3:], LABELS[:3])
    (dataset.folder / "shard-000000.tar").write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"shard-000000.tar: content changed since it was sealed"):
        dataset.all()


def test_sealing_needs_every_shard_and_one_shape(tmp_path: Path):
    with pytest.raises(UserError, match=r"shard-000000.tar is missing"):
        seal_dataset(tmp_path)
    write(tmp_path, number=0)
    write(tmp_path, number=2)
    with pytest.raises(UserError, match=r"shard-000001.tar is missing"):
        seal_dataset(tmp_path)
    write(tmp_path, RGB, number=1)
    with pytest.raises(UserError, match=r"shard-000001.tar: holds \{'shape': \[3, 5, 7\]"):
        seal_dataset(tmp_path)
    assert not manifest.is_sealed(tmp_path)


def test_a_set_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"x")
    manifest.seal(tmp_path, "weights", 1, ["x"])
    with pytest.raises(UserError, match="holds weights, not a set"):
        Dataset(tmp_path)


def test_vectors_make_a_set_of_vectors(tmp_path: Path):
    write(tmp_path, VECTORS, None)
    assert seal_dataset(tmp_path).kind == "vectors"
    dataset = Dataset(tmp_path)
    assert (dataset.shape, dataset.labels, dataset.num_classes) == ((2,), None, 0)
    assert np.array_equal(dataset.all(), VECTORS)


def saved(array, **options):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        saved(np.arange(5, dtype=np.float32)),
        saved(np.arange(5, dtype=">f4")),
        saved(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)),
        saved(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
        saved(np.arange(5.0), version=(2, 0)),
        saved(np.float32(3)),
        saved(np.zeros(0)),
        saved(np.arange(5.0)) + b"more",
    ],
)
def test_arrays_are_decoded_as_numpy_does(payload):
    ours, theirs = shards.decode("0.npy", payload), np.load(io.BytesIO(payload))
    assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    assert ours.flags.writeable


@pytest.mark.parametrize(
    "payload",
    [
        *(saved(np.arange(5.0))[:n] for n in (0, 3, 7, 9, 60, 100, 140)),
        saved(np.arange(5.0)).replace(b"descr", b"dexcr"),
        saved(np.arange(5.0)).replace(b"(5,)", b"(9,)"),
        saved(np.array([{}], dtype=object)),
    ],
)
def test_damaged_arrays_are_refused_as_numpy_does(payload):
    with pytest.raises((ValueError, EOFError)):
        np.load(io.BytesIO(payload), allow_pickle=False)
    with pytest.raises((ValueError, EOFError)):
        shards.decode("0.npy", payload)
