import io
import json

import made_by_others
import numpy as np
import pytest
from made_by_others import IMAGES, KINDS, LABELS, N
from PIL import Image

from entroloop.data import take as module
from entroloop.data.errors import Interrupted, UserError
from entroloop.data.seeds import Part
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.row_files import open_rows
from entroloop.data.sources.settings import Settings
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.take import take

IDS = np.array([41, 3, 17, 0, 49, 30, 8, 22, 4, 9, 44, 12])
ROWS = np.sort(IDS)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(module, "default_shard_size", lambda layout: 5)
    monkeypatch.setattr(module, "PER_FOLDER", 5)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def finished_in_parts_and_after_a_stop(source, form, tmp_path):
    """The contents of two folders that were not made in one go."""
    for part in (Part(1, 2), Part(0, 2), None):
        take(source, IDS, tmp_path / "parts", form, part=part)
    with pytest.raises(Interrupted):
        take(source, IDS, tmp_path / "stopped", form, stop=iter([False, True]).__next__)
    assert contents(tmp_path / "stopped")
    take(source, IDS, tmp_path / "stopped", form)
    return contents(tmp_path / "parts"), contents(tmp_path / "stopped")


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_ascending_sealed_and_know_their_origin(tmp_path, kind):
    source = made_by_others.make(kind, tmp_path)
    assert take(source, IDS, tmp_path / "out") == len(IDS)
    found = Dataset(tmp_path / "out")
    np.testing.assert_array_equal(found.all(), IMAGES[ROWS])
    np.testing.assert_array_equal(found.provenance.index, ROWS)
    names = open_source(str(source)).names
    assert found.provenance.source == tuple(names[row] for row in ROWS)
    if kind != "folder":
        np.testing.assert_array_equal(found.labels, LABELS[ROWS])
        assert found.num_classes == 4
    assert manifest.problems(tmp_path / "out") == []
    assert found.shard_counts == [5, 5, 2]
    before = contents(tmp_path / "out")
    take(source, IDS[::-1], tmp_path / "out")
    for other in finished_in_parts_and_after_a_stop(source, "shards", tmp_path):
        assert other == before


def test_the_provenance_of_a_generation_is_kept(finished, tmp_path):
    samples = finished.run / "generation_0001" / "samples"
    take(samples, [7, 2, 30], tmp_path / "out")
    own = Dataset(tmp_path / "out").provenance
    assert (own.generation.tolist(), own.index.tolist(), own.source) == ([1, 1, 1], [2, 7, 30], ("", "", ""))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_folder_is_imported_again_with_the_same_pixels_and_labels(tmp_path, kind):
    source = made_by_others.make(kind, tmp_path)
    take(source, IDS, tmp_path / "out", "folder")
    again = open_source(str(tmp_path / "out"))
    assert again.names[0] == "00000/img00000000.png"
    assert again.names[-1] == "00002/img00000011.png"
    for image, row in zip(again.read(range(len(IDS))), ROWS, strict=True):
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), IMAGES[row])
    if kind == "folder":
        assert again.labels is None
        one = (tmp_path / "out" / "00000" / "img00000001.png").read_bytes()
        assert one == (source / f"{ROWS[1]:03d}.png").read_bytes(), "the file's own bytes"
    else:
        np.testing.assert_array_equal(again.labels, LABELS[ROWS])
    found = json.loads((tmp_path / "out" / "dataset.json").read_text())["names"]
    assert found["00000/img00000002.png"] == open_source(str(source)).names[ROWS[2]]
    before = contents(tmp_path / "out")
    take(source, IDS, tmp_path / "out", "folder")
    for other in finished_in_parts_and_after_a_stop(source, "folder", tmp_path):
        assert other == before
    with pytest.raises(UserError, match="already holds other images"):
        take(source, IDS[:3], tmp_path / "out", "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_and_a_list_of_keys_follow_the_ids(tmp_path, kind):
    source = made_by_others.make(kind, tmp_path)
    take(source, IDS, tmp_path / "out.npz", "npz")
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["arr_0"], IMAGES[IDS].transpose(0, 2, 3, 1))
        assert set(found) == ({"arr_0"} if kind == "folder" else {"arr_0", "labels"})
        if kind != "folder":
            np.testing.assert_array_equal(found["labels"], LABELS[IDS])
    np.testing.assert_array_equal(open_rows(tmp_path / "out.npz")[:], IMAGES[IDS])
    take(source, IDS, tmp_path / "keys.txt", "keys")
    names = open_source(str(source)).names
    assert (tmp_path / "keys.txt").read_text().splitlines() == [names[row] for row in IDS]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def test_vectors_become_shards_and_arrays_but_no_images(tmp_path):
    take("wine", [5, 1], tmp_path / "out")
    take("wine", [5, 1], tmp_path / "out.npz", "npz")
    wine = np.stack(list(open_source("wine").read(range(6))))
    np.testing.assert_array_equal(Dataset(tmp_path / "out").all(), wine[[1, 5]])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["arr_0"], wine[[5, 1]])
    with pytest.raises(UserError, match="--as folder: wine holds vectors"):
        take("wine", [5, 1], tmp_path / "images", "folder")


def test_settings_apply_to_the_chosen_images_alone(tmp_path):
    """One image of another size is in nobody's way unless it is chosen."""
    source = made_by_others.make("folder", tmp_path)
    Image.new("RGB", (9, 9)).save(source / "005.png")
    take(source, IDS, tmp_path / "out")
    with pytest.raises(UserError, match="images differ in size"):
        take(source, [5, 6], tmp_path / "two")
    take(source, [5, 6], tmp_path / "as they are", "folder")
    for form in ("shards", "folder"):
        take(source, [5, 6], tmp_path / f"a {form}", form, settings=Settings(resolution=3, color="grey"))
    assert Dataset(tmp_path / "a shards").shape == (1, 3, 3)
    with Image.open(io.BytesIO((tmp_path / "a folder" / "00000" / "img00000000.png").read_bytes())) as image:
        assert (image.mode, image.size) == ("L", (3, 3))


@pytest.mark.parametrize(
    ("message", "ids"),
    [
        ("id 3 is repeated at position 2", np.array([3, 5, 3])),
        ("id -1 at position 1: the source has rows 0 … 49", np.array([3, -1])),
        ("id 50 at position 0", np.array([N])),
        (f"id {2**64 - 1} at position 0", np.array([2**64 - 1], np.uint64)),
        ("holds float64 of shape .2., ids are integers", np.array([1.0, 2.0])),
        (r"holds int64 of shape \[1, 2\]", np.array([[1, 2]])),
        ("holds bool of shape", np.array([True, False])),
        ("holds no ids", np.array([], np.int64)),
        ("holds object of shape", np.array([None, 2])),
    ],
)
@pytest.mark.parametrize("form", module.FORMS)
def test_wrong_ids_are_one_line_and_leave_nothing(tmp_path, message, ids, form):
    source = made_by_others.make("npz", tmp_path)
    with pytest.raises(UserError, match=message):
        take(source, ids, tmp_path / "out.npz", form)
    assert not (tmp_path / "out.npz").exists()


def test_wrong_files_of_ids_are_named(tmp_path):
    np.savez(tmp_path / "two.npz", a=IDS, b=IDS)
    (tmp_path / "text.npy").write_text("1\n2\n")
    for name, message in (
        ("no.npy", "no such file"),
        ("two.npz", "several arrays"),
        ("text.npy", "is no .npy file: give"),
    ):
        with pytest.raises(UserError, match=rf"{name}: .*{message}"):
            take("digits", tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize(
    ("message", "dest", "form", "more"),
    [
        ("--as tar: give one of shards, folder, npz, keys", "out", "tar", {}),
        ("--part 0::2: goes with --as shards", "out.npz", "npz", {"part": Part(0, 2)}),
        ("must end in .npz", "out", "npz", {}),
        ("is a folder: --as keys writes one file", ".", "keys", {}),
        ("--limit: ids are rows of the whole source", "out", "shards", {"settings": Settings(limit=3)}),
        ("is inside the source", "tars/out", "shards", {}),
        ("is inside the source", "tars/out", "keys", {}),
        ("already holds other files", ".", "folder", {}),
        ("already holds other files", ".", "shards", {}),
    ],
)
def test_wrong_places_and_forms_are_refused(tmp_path, message, dest, form, more):
    source = made_by_others.make("tars", tmp_path)
    with pytest.raises(UserError, match=message):
        take(source, IDS, tmp_path / dest, form, **more)


def test_another_choice_into_the_same_folder_is_refused(tmp_path):
    source = made_by_others.make("npz", tmp_path)
    for stop in (lambda: True, lambda: False):
        try:
            take(source, IDS, tmp_path / "out", stop=stop)
        except Interrupted:
            assert stop()
        with pytest.raises(UserError, match=r"holds chosen samples made otherwise .*count 12 there, 3 now"):
            take(source, IDS[:3], tmp_path / "out")
