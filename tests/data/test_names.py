"""Names in little memory, and the lists of tars that the parts of one work share."""

import pickle
import shutil

import made_by_others
import numpy as np
import pytest

from entroloop.data import files
from entroloop.data.encode import encode
from entroloop.data.errors import UserError
from entroloop.data.seeds import Part
from entroloop.data.sources import archives, listing
from entroloop.data.sources.base import ImageSource
from entroloop.data.sources.begun import names_digest
from entroloop.data.sources.given import Lists
from entroloop.data.sources.importer import import_dataset, import_part
from entroloop.data.sources.names import Ignored, Packed, Prefixed
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.settings import Settings
from entroloop.data.take import take

NAMES = ["", "a.png", "café/0.png", "日本", "not \udcff text", "a.png"]


def test_packed_names_are_the_names():
    for packed in (Packed(NAMES), pickle.loads(pickle.dumps(Packed(NAMES))), Packed.of(*Packed(NAMES).arrays())):
        assert list(packed) == NAMES
        assert packed == NAMES
        assert packed != NAMES[:-1]
        assert (packed[-2], packed[1:4]) == (NAMES[-2], NAMES[1:4])
        with pytest.raises(IndexError):
            packed[6]
    assert list(Packed()) == []
    prefixed = Prefixed(["x/", ""], np.array([1, 0, 1, 0, 1, 0]), Packed(NAMES))
    assert list(prefixed) == ["", "x/a.png", "café/0.png", "x/日本", "not \udcff text", "x/a.png"]


def test_a_name_takes_few_bytes():
    many = Packed(f"{i:09d}.png" for i in range(10_000))
    assert len(pickle.dumps(many)) < 22 * len(many)


def test_ignored_names_have_their_reasons():
    reasons = {"a.txt": "of another kind", ".b": "hidden", "c": "of another kind"}
    ignored = Ignored(reasons.items())
    assert ignored == reasons
    assert (ignored["c"], len(ignored), "d" in ignored) == ("of another kind", 3, False)
    assert listing.told(ignored) == listing.told(reasons)


@pytest.mark.parametrize("kind", made_by_others.KINDS)
def test_the_digest_of_names_is_that_of_their_json(tmp_path, kind):
    source = open_source(str(made_by_others.make(kind, tmp_path)))
    for labels, classes in ((None, ()), (np.arange(len(source.names)), ("a", 'q"é'))):
        source.labels, source.classes = labels, classes
        plain = {"names": list(source.names), "labels": None if labels is None else labels.tolist()}
        assert names_digest(source) == files.digest({**plain, "classes": list(classes)})


def _listed(monkeypatch):
    """The tars that are listed from now on."""
    found, of_tar = [], archives.of_tar

    def noted(path):
        found.append(path.name)
        return of_tar(path)

    monkeypatch.setattr(archives, "of_tar", noted)
    return found


def test_parts_list_each_tar_once_and_leave_no_list(tmp_path, monkeypatch):
    source = made_by_others.make("tars", tmp_path)
    (source / "notes.txt").write_text("no image")
    tars = sorted(path.name for path in source.glob("*.tar"))
    encode(source, tmp_path / "alone", ["pixel"])
    listed = _listed(monkeypatch)
    for part in (Part(1, 2), Part(0, 2), None):
        encode(source, tmp_path / "out", ["pixel"], part=part)
    take(source, [3, 30], tmp_path / "chosen", part=Part(0, 1))
    import_dataset(str(source), tmp_path / "imported")
    assert listed == [*tars[1:], tars[0], *tars, *tars]
    for name in ("manifest.json", "pixel-000000.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not (tmp_path / "out" / "encode.tars").exists()


def images(path, lists=None) -> ImageSource:
    found = open_source(str(path), lists=lists)
    assert isinstance(found, ImageSource)
    return found


def test_parts_that_begin_together_list_different_tars(tmp_path, monkeypatch):
    """Every part sees the tars that the others have listed by then."""
    source = made_by_others.make("tars", tmp_path)
    tars = sorted(source.glob("*.tar"))
    found, of_tar, waiting = [], archives.of_tar, [Part(1, 3), Part(2, 3)]

    def noted(path):
        found.append(path)
        if waiting:
            images(source, Lists(tmp_path / "lists", waiting.pop(0)))
        return of_tar(path)

    monkeypatch.setattr(archives, "of_tar", noted)
    shared = images(source, Lists(tmp_path / "lists", Part(0, 3)))
    assert found[:3] == tars  # all three parts are at work on their first tar
    assert len(found) == 5  # the third part lists the two others, which had not been written, and the others none
    assert list(shared.names) == list(images(source).names)


def test_a_list_is_used_only_for_the_tar_that_was_listed(tmp_path, monkeypatch):
    source, lists = made_by_others.make("tars", tmp_path), Lists(tmp_path / "lists", Part(0, 2))
    (source / "notes.txt").write_text("no image")
    first = images(source, lists)
    assert (first.names, first.ignored) == (images(source).names, images(source).ignored)
    listed = _listed(monkeypatch)
    again = images(source, Lists(tmp_path / "lists"))
    assert listed == []
    assert (again.names, again.ignored, again.classes) == (first.names, first.ignored, first.classes)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert [again.payload(row) for row in range(3)] == [first.payload(row) for row in range(3)]
    shutil.copy(next(source.glob("*.tar")), source / "zz.tar")
    assert len(images(source, lists).names) > len(first.names)
    assert set(listed) == {"zz.tar"}
    listed.clear()
    damaged = min((tmp_path / "lists").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-40])
    images(source, lists)
    assert listed == ["generated-0000.tar"]


@pytest.mark.parametrize("work", ["encode", "take", "import"])
def test_a_part_that_is_refused_leaves_no_list(tmp_path, work):
    source, out = made_by_others.make("tars", tmp_path), tmp_path / "out"
    refused = {
        "encode": lambda: encode(source, out, ["pixel"], key="x", part=Part(0, 2)),
        "take": lambda: take(source, [99], out, part=Part(0, 2)),
        "import": lambda: import_part(str(source), out, Settings(limit=99), Part(0, 2)),
    }
    with pytest.raises(UserError):
        refused[work]()
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UserError, match="already holds other files"):
        refused[work]()
    assert [path.name for path in out.iterdir()] == ["mine"]
