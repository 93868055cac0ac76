"""Names in little memory, and the list of a source of tars that parts of one work share."""

import pickle
import shutil

import made_by_others
import numpy as np
import pytest

from entroloop.data import files
from entroloop.data.encode import encode
from entroloop.data.seeds import Part
from entroloop.data.sources import archives, listing
from entroloop.data.sources.base import ImageSource
from entroloop.data.sources.begun import names_digest
from entroloop.data.sources.containers import keep
from entroloop.data.sources.names import Ignored, Packed, Prefixed
from entroloop.data.sources.recognise import open_source

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


def test_only_the_first_part_lists_the_tars(tmp_path, monkeypatch):
    source = made_by_others.make("tars", tmp_path)
    (source / "notes.txt").write_text("no image")
    encode(source, tmp_path / "alone", ["pixel"])
    listed = _listed(monkeypatch)
    encode(source, tmp_path / "out", ["pixel"], part=Part(0, 2))
    assert listed
    listed.clear()
    encode(source, tmp_path / "out", ["pixel"], part=Part(1, 2))
    encode(source, tmp_path / "out", ["pixel"])
    assert listed == []
    for name in ("manifest.json", "pixel-000000.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not (tmp_path / "out" / "encode.tars.npz").exists()


def images(path, kept=None) -> ImageSource:
    found = open_source(str(path), kept=kept)
    assert isinstance(found, ImageSource)
    return found


def test_a_list_is_used_only_for_the_tars_that_were_listed(tmp_path, monkeypatch):
    source = made_by_others.make("tars", tmp_path)
    first, kept = images(source), tmp_path / "kept.npz"
    keep(first, kept)
    listed = _listed(monkeypatch)
    again = images(source, kept)
    assert listed == []
    assert (again.names, again.ignored, again.classes) == (first.names, first.ignored, first.classes)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert [again.payload(row) for row in range(3)] == [first.payload(row) for row in range(3)]
    shutil.copy(next(source.glob("*.tar")), source / "zz.tar")
    assert len(open_source(str(source), kept=kept).names) > len(first.names)
    assert listed
    listed.clear()
    kept.write_bytes(kept.read_bytes()[:-40])
    open_source(str(source), kept=kept)
    assert listed
