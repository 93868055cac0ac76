"""Import end to end, with small real files made here."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import small_disk
from present import present
from sklearn.datasets import load_digits

from entroloop.data.errors import Interrupted, UserError
from entroloop.data.seeds import Part
from entroloop.data.sources import base as sources
from entroloop.data.sources.base import ImageSource
from entroloop.data.sources.begun import Begun
from entroloop.data.sources.convert import SampleForm
from entroloop.data.sources.importer import import_dataset, import_part, seal_import
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.settings import Settings, default_shard_size
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset

rng = np.random.default_rng(0)


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
        Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)).save(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refused(message: str, source: str, dest: Path, **kwargs) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_dataset(source, dest, Settings(**kwargs))
    assert "\n" not in str(caught.value)


# --- sources ------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns(tmp_path: Path):
    sealed = import_dataset("digits", tmp_path / "d")
    pixels, labels = load_digits(return_X_y=True)
    dataset = Dataset(tmp_path / "d")
    assert (sealed.kind, len(dataset), dataset.shape, dataset.num_classes) == ("images", 1797, (1, 8, 8), 10)
    assert np.array_equal(dataset.all().reshape(1797, 64), np.rint(pixels * 255 / 16))
    assert np.array_equal(present(dataset.labels), labels)
    assert np.array_equal(dataset.provenance.index, np.arange(1797))
    assert (dataset.provenance.generation == -1).all()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder_keeps_pixels_labels_and_splits(tmp_path: Path, suffix: str):
    arrays = {}
    for split, n in (("train", 7), ("t10k", 3)):
        arrays[split] = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8), rng.integers(0, 9, n, dtype=np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte{suffix}", arrays[split][0])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte{suffix}", arrays[split][1])
    for name, split in ((None, "train"), ("train", "train"), ("test", "t10k")):
        dest = tmp_path / f"out-{name}"
        import_dataset(str(tmp_path), tmp_path.parent / dest.name, Settings(split=name))
        dataset = Dataset(tmp_path.parent / dest.name)
        assert np.array_equal(dataset.all()[:, 0], arrays[split][0])
        assert np.array_equal(present(dataset.labels), arrays[split][1])
        shutil.rmtree(tmp_path.parent / dest.name)
    refused("--split val: .* has test and train", str(tmp_path), Path(f"{tmp_path}-x"), split="val")


def test_idx_files_beside_the_set_are_told_or_refused(tmp_path: Path):
    array = rng.integers(0, 256, (3, 6, 6), dtype=np.uint8)
    for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.GZ"):
        write_idx(tmp_path / name, array)
    (tmp_path / "notes.txt").write_text("")
    assert open_source(str(tmp_path)).ignored == {
        "notes.txt": "of another kind",
        "t10k-images-idx3-ubyte.GZ": "of another split",
        "train-images-idx3-ubyte.gz": "a compressed copy",
    }
    (tmp_path / "train-labels-idx1-ubyte").symlink_to("nowhere")
    refused("train-labels-idx1-ubyte is a link that cannot be followed", str(tmp_path), Path(f"{tmp_path}-out"))
    write_idx(tmp_path / "emnist-letters-train-images-idx3-ubyte", array)
    refused("are both images of train: give one file", str(tmp_path), Path(f"{tmp_path}-out"))


def test_files_beside_an_array_are_told(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    (tmp_path / "x.npy").rename(tmp_path / "x.NPY")
    (tmp_path / "y.txt").write_text("")
    assert open_source(str(tmp_path)).ignored == {"y.txt": "of another kind"}


def test_one_idx_file_without_labels(tmp_path: Path):
    array = rng.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    write_idx(tmp_path / "some.idx4", array)
    import_dataset(str(tmp_path / "some.idx4"), tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    assert np.array_equal(dataset.all(), array.transpose(0, 3, 1, 2))
    assert not dataset.labelled


def test_damaged_idx_is_named(tmp_path: Path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, rng.integers(0, 256, (50, 8, 8), dtype=np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("train-images-idx3-ubyte.gz: damaged or truncated", str(tmp_path), Path(f"{tmp_path}-out"))
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-3]))
    refused("truncated: 3197 bytes of data, but its header says 50 x 8 x 8", str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_bytes(whole)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(49, np.uint8))
    refused("49 labels, but .* holds 50 images", str(path), tmp_path / "out")


def test_folder_classes_order_and_odd_names(tmp_path: Path):
    names = ["zebra/b.png", "zebra/a 1.png", "cat/deep/ü.png", "cat/x.PNG", "cat/.hidden.png"]
    write_images(tmp_path / "src", names)
    (tmp_path / "src" / "README.txt").write_text("no image")
    import_dataset(str(tmp_path / "src"), tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    assert dataset.provenance.source == ("cat/deep/ü.png", "cat/x.PNG", "zebra/a 1.png", "zebra/b.png")
    assert present(dataset.labels).tolist() == [0, 0, 1, 1]
    assert dataset.manifest.about["classes"] == ["cat", "zebra"]
    assert dataset.manifest.about["import"]["ignored"] == {"of another kind": 1}
    expected = [np.asarray(Image.open(tmp_path / "src" / n)).transpose(2, 0, 1) for n in dataset.provenance.source]
    assert np.array_equal(dataset.all(), expected)


def test_flat_and_numbered_folders_have_no_classes(tmp_path: Path):
    write_images(tmp_path / "flat", ["b.png", "a.png"], mode="L")
    write_images(tmp_path / "ffhq", ["00000/00000.png", "00000/00999.png", "01000/01000.png"])
    write_images(tmp_path / "edm", ["00000/img00000000.png", "00001/img00001000.png"])
    write_images(tmp_path / "classes", ["0/7.png", "1/7.png"])
    for name, labelled in (("flat", False), ("ffhq", False), ("edm", False), ("classes", True)):
        import_dataset(str(tmp_path / name), tmp_path / f"{name}-out")
        assert Dataset(tmp_path / f"{name}-out").labelled is labelled
    assert Dataset(tmp_path / "flat-out").shape == (1, 8, 8)


def test_folders_named_train_and_test_are_splits(tmp_path: Path):
    write_images(tmp_path / "src", ["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"])
    import_dataset(str(tmp_path / "src"), tmp_path / "out", Settings(split="test"))
    dataset = Dataset(tmp_path / "out")
    assert dataset.provenance.source == ("test/a/3.png", "test/b/4.png")
    assert present(dataset.labels).tolist() == [0, 1]


def test_missing_labels_are_refused_or_left_out(tmp_path: Path):
    write_images(tmp_path / "src", ["a/1.png", "b/2.png", "loose.png"])
    refused("1 of 3 samples have no label, first loose.png", str(tmp_path / "src"), tmp_path / "out")
    import_dataset(str(tmp_path / "src"), tmp_path / "out", Settings(labels=False))
    assert not Dataset(tmp_path / "out").labelled


def test_mixed_sizes_and_colours(tmp_path: Path):
    write_images(tmp_path / "src", ["a.png"], mode="L")
    write_images(tmp_path / "src", ["b.png"], size=(12, 16))
    refused(
        r"differ in size \(a.png is 8 x 8, b.png is 12 x 16\): give --resolution", str(tmp_path / "src"), tmp_path / "o"
    )
    assert not (tmp_path / "o").exists()
    for color, channels in (("auto", 3), ("grey", 1), ("rgb", 3)):
        import_dataset(str(tmp_path / "src"), tmp_path / color, Settings(resolution=4, color=color))
        assert Dataset(tmp_path / color).shape == (channels, 4, 4)
    grey = Dataset(tmp_path / "auto").all()[0]
    assert np.array_equal(grey[0], grey[1])


def test_truncated_image_is_named_and_nothing_is_sealed(tmp_path: Path):
    write_images(tmp_path / "src", ["a.png", "b.png", "c.png"], size=(64, 64))
    path = tmp_path / "src" / "b.png"
    path.write_bytes(path.read_bytes()[:5000])
    refused("src: b.png: damaged or not an image", str(tmp_path / "src"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["import.json"]
    path.write_bytes(b"nothing like an image")
    refused("src: b.png: damaged or not an image", str(tmp_path / "src"), tmp_path / "out2")


# --- settings -----------------------------------------------------------------------------------------------------


def test_limit_takes_the_first_rows_or_every_class_where_sorted(tmp_path: Path):
    import_dataset("digits", tmp_path / "d", Settings(limit=100))
    assert np.array_equal(present(Dataset(tmp_path / "d").labels), load_digits().target[:100])
    write_images(tmp_path / "src", [f"{c}/{i}.png" for c in "abc" for i in range(4)])
    import_dataset(str(tmp_path / "src"), tmp_path / "out", Settings(limit=5))
    assert Dataset(tmp_path / "out").provenance.source == ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "c/0.png")
    refused("--limit 13: the source has 12 samples", str(tmp_path / "src"), tmp_path / "x", limit=13)


def test_heldout_splits_by_seed_without_overlap(tmp_path: Path):
    sources = {}
    for split in ("train", "test"):
        import_dataset("digits", tmp_path / split, Settings(heldout=300, split=split, split_seed=4))
        sources[split] = set(Dataset(tmp_path / split).provenance.source)
    assert (len(sources["train"]), len(sources["test"])) == (1497, 300)
    assert not sources["train"] & sources["test"]
    refused("no splits of its own; --heldout N", "digits", tmp_path / "x", split="test")
    refused("--heldout 1797", "digits", tmp_path / "x", heldout=1797)


def test_resize_crops_the_centre(tmp_path: Path):
    pixels = rng.integers(0, 256, (8, 20, 3), dtype=np.uint8)
    (tmp_path / "src").mkdir()
    Image.fromarray(pixels).save(tmp_path / "src" / "a.png")
    import_dataset(str(tmp_path / "src"), tmp_path / "box", Settings(resolution=4))
    centre = pixels[:, 6:14].astype(np.float64)
    expected = centre.reshape(4, 2, 4, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(Dataset(tmp_path / "box").all()[0] - expected).max() <= 0.5
    import_dataset(str(tmp_path / "src"), tmp_path / "lanczos", Settings(resolution=5))
    reference = Image.fromarray(pixels[:, 6:14]).resize((5, 5), Image.Resampling.LANCZOS)
    assert np.array_equal(Dataset(tmp_path / "lanczos").all()[0], np.asarray(reference).transpose(2, 0, 1))
    sealed = import_dataset(str(tmp_path / "src"), tmp_path / "filter", Settings(resolution=4, filter="lanczos"))
    reference = Image.fromarray(pixels[:, 6:14]).resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(Dataset(tmp_path / "filter").all()[0], np.asarray(reference).transpose(2, 0, 1))
    assert sealed.about["import"]["settings"]["filter"] == "lanczos"


def test_bad_settings_are_named(tmp_path: Path):
    for kwargs, message in (
        ({"resolution": 0}, "--resolution 0: must be at least 1"),
        ({"limit": -1}, "--limit -1"),
        ({"shard_size": 0}, "--shard-size 0"),
        ({"heldout": -1}, "--heldout -1"),
        ({"color": "red"}, "--color red: give auto or grey or rgb"),
        ({"filter": "cubic"}, "--filter cubic: give auto or box or lanczos"),
        ({"filter": "box"}, "--filter box: has no effect without --resolution"),
        ({"encoding": "jpg"}, "--encoding jpg: give png or npy"),
    ):
        refused(message, "digits", tmp_path / "x", **kwargs)
    assert not (tmp_path / "x").exists()


def test_bad_sources_are_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".a.png").write_bytes(b"")
    (tmp_path / "nothing.bin").write_bytes(b"")
    (tmp_path / "some.bin").write_bytes(b"some")
    for source, message in (
        ("digts", "no such file or folder: did you mean digits"),
        ("", "an empty path was given: write . for this folder"),
        ("~nobody here/x", "no home folder of ~nobody here is known"),
        ("/dev/null", "/dev/null: is a device or pipe: give a file or folder"),
        (str(tmp_path / "missing"), "missing: no such file or folder: give a file"),
        (str(tmp_path / "empty"), "empty: empty folder: give"),
        (str(tmp_path / "hidden"), r"hidden: empty folder \(but for hidden files, as .a.png\): give"),
        (str(tmp_path / "text"), r"text: holds no images \(a.txt\)"),
        (str(tmp_path / "nothing.bin"), "nothing.bin: holds no rows: the file is empty"),
        (str(tmp_path / "some.bin"), "some.bin: not a kind of data set that can be imported: give images"),
    ):
        refused(message, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- going on, parts, races ---------------------------------------------------------------------------------------


def test_finished_import_is_left_alone_and_others_are_refused(tmp_path: Path):
    dest = tmp_path / "d"
    first = import_dataset("digits", dest, Settings(limit=50))
    before = {path: path.stat().st_mtime_ns for path in dest.iterdir()}
    assert import_dataset("digits", dest, Settings(limit=50)) == first
    assert before == {path: path.stat().st_mtime_ns for path in dest.iterdir()}
    refused("made otherwise .*limit 50 there, 60 now", "digits", dest, limit=60)
    write_images(tmp_path / "src", ["a.png", "b.png"])
    refused("is inside the source", str(tmp_path / "src"), tmp_path / "src" / "out")
    refused("already holds other files", "digits", tmp_path / "src")
    refused("is a file", "digits", tmp_path / "src" / "a.png")


def test_a_changed_source_is_noticed(tmp_path: Path):
    write_images(tmp_path / "src", ["a.png", "b.png"])
    import_dataset(str(tmp_path / "src"), tmp_path / "out")
    (tmp_path / "src" / "b.png").rename(tmp_path / "src" / "c.png")
    refused("the source's names or labels changed", str(tmp_path / "src"), tmp_path / "out")


def test_same_bytes_from_one_process_from_several_in_parts_and_after_a_stop(tmp_path: Path):
    write_images(tmp_path / "src", [f"{c}/{i:02d}.png" for c in "ab" for i in range(12)])
    source = str(tmp_path / "src")
    settings = Settings(resolution=4, shard_size=5)
    whole = import_dataset(source, tmp_path / "whole", Settings(resolution=4, shard_size=5))
    assert whole.count == 24
    import_dataset(source, tmp_path / "two", Settings(resolution=4, shard_size=5), workers=2)
    for index in (1, 0):
        with pytest.raises(UserError, match=r"shard-000000.tar is missing|not an import"):
            seal_import(tmp_path / "parts")
        import_part(source, tmp_path / "parts", settings, Part(index, 2))
    seal_import(tmp_path / "parts")
    with pytest.raises(Interrupted):
        import_dataset(source, tmp_path / "stopped", Settings(resolution=4, shard_size=5), stop=lambda: True)
    assert not manifest.is_sealed(tmp_path / "stopped")
    import_dataset(source, tmp_path / "stopped", Settings(resolution=4, shard_size=5))
    for name in ("two", "parts", "stopped"):
        assert contents(tmp_path / name) == contents(tmp_path / "whole"), name


def test_two_imports_into_one_folder_at_once(tmp_path: Path):
    import concurrent.futures as futures

    import_dataset("digits", tmp_path / "alone", Settings(shard_size=100))
    with futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(import_dataset, "digits", tmp_path / "shared", Settings(shard_size=100)) for _ in range(4)]
        seals = [job.result() for job in jobs]
    assert all(sealed == seals[0] for sealed in seals)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_an_import_that_begins_while_another_looks_at_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The other one's settings appear between the look for them and the look at the folder's files."""
    with pytest.raises(Interrupted):
        import_dataset("digits", tmp_path / "shared", Settings(shard_size=100), stop=lambda: True)
    read, late = Begun._unfinished, [True]
    monkeypatch.setattr(Begun, "_unfinished", lambda begun: None if late and late.pop() else read(begun))
    import_dataset("digits", tmp_path / "shared", Settings(shard_size=100))
    assert not late
    import_dataset("digits", tmp_path / "alone", Settings(shard_size=100))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_other_order_of_creation_gives_the_same_bytes(tmp_path: Path):
    names = [f"{i}.png" for i in range(6)]
    write_images(tmp_path / "a", names)
    (tmp_path / "b").mkdir()
    for name in reversed(names):
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    for name in "ab":
        import_dataset(str(tmp_path / name), tmp_path / f"{name}-out")
    assert contents(tmp_path / "a-out") == contents(tmp_path / "b-out")


def test_large_samples_get_smaller_shards():
    assert default_shard_size(SampleForm((3, 1024, 1024), "png", False)) * 3 * 1024**2 <= 2**27
    assert default_shard_size(SampleForm((3, 64, 64), "png", False)) == 1000


def test_full_disk_is_one_line_and_the_import_goes_on_later(tmp_path: Path):
    write_images(tmp_path / "src", [f"{i}.png" for i in range(8)], size=(64, 64))
    with small_disk(tmp_path / "disk", "100k") as disk:
        for _ in range(2):
            refused(r"shard-00000\d.tar: no space left", str(tmp_path / "src"), disk / "out", shard_size=2)
        assert not manifest.is_sealed(disk / "out")
        assert not list((disk / "out").glob(".tmp-*"))
        import_dataset(str(tmp_path / "src"), tmp_path / "whole", Settings(shard_size=2))
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        import_dataset(str(tmp_path / "src"), disk / "out", Settings(shard_size=2))
        assert contents(disk / "out") == contents(tmp_path / "whole")


def test_a_destination_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    refused("file/out: not a directory: a part of this path is a file", "digits", tmp_path / "file" / "out")


def test_workers_need_not_import_torch():
    modules = "entroloop.data.sources.convert, entroloop.data.sources.containers, sys"
    command = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "jp2", "tif", "bmp", "gif", "ppm"])
def test_sizes_and_colours_are_found_in_headers_of_every_format(tmp_path: Path, suffix: str, monkeypatch):
    (tmp_path / "src").mkdir()
    noise = rng.integers(0, 256, (300, 200), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "src" / f"grey.{suffix}")
    Image.fromarray(np.dstack([noise] * 3)).save(tmp_path / "src" / f"color.{suffix}")
    monkeypatch.setattr(sources, "HEADER", 2000)
    source = open_source(str(tmp_path / "src"))
    assert isinstance(source, ImageSource)
    assert [source.header(i)[1:] for i in range(2)] == [(200, 300)] * 2
    assert source.header(0)[0] == 3
    if suffix not in ("gif", "webp", "avif"):  # these have no greyscale
        assert source.header(1)[0] == 1


def _own(array, name):
    return lambda: sources.ArraySource("own", name, array, None)


not_finite = _own(np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1).astype(np.float32), "rows")
too_large = _own(np.where(np.arange(12).reshape(6, 2) == 7, 1e300, 1), "rows")
not_whole = _own(np.where(np.arange(12).reshape(6, 2) == 7, 2**24 + 1, 1), "rows")
usable = _own(np.where(np.arange(12).reshape(6, 2) == 7, 2**24, 1).astype(">i8"), "rows")


@pytest.mark.parametrize("name", ["not_finite", "too_large", "not_whole"])
def test_a_users_own_array_is_checked_for_what_float32_does_not_hold(tmp_path, name):
    with pytest.raises(UserError, match=r"^rows: 3 holds (NaN|numbers beyond|integers beyond)"):
        import_dataset(f"test_importer:{name}", tmp_path / "own")
    assert not manifest.is_sealed(tmp_path / "own")
    assert import_dataset("test_importer:usable", tmp_path / "usable").count == 6
