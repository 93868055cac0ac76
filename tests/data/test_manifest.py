from __future__ import annotations

import json
from pathlib import Path

import pytest

from entroloop.data.errors import UserError
from entroloop.data.store import manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.bin").write_bytes(b"bb")
    (tmp_path / "a.bin").write_bytes(b"a")
    return tmp_path


def test_seal_lists_files_in_order_with_sizes_and_reads_back(folder: Path):
    sealed = manifest.seal(folder, "weights", 3, ["b.bin", "a.bin"], about={"x": 1}, made_from={"data": "d"})
    assert [(e.name, e.bytes) for e in sealed.files] == [("a.bin", 1), ("b.bin", 2)]
    assert sealed.bytes == 3
    assert manifest.is_sealed(folder)
    assert manifest.read(folder) == sealed
    assert manifest.problems(folder) == []


def test_the_first_seal_stands(folder: Path):
    first = manifest.seal(folder, "weights", 3, ["a.bin"])
    before = (folder / "manifest.json").read_bytes()
    assert manifest.seal(folder, "weights", 4, ["b.bin"]) == first
    assert (folder / "manifest.json").read_bytes() == before


def test_equal_folders_have_equal_bytes_and_digests(folder: Path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name in ("a.bin", "b.bin"):
        (other / name).write_bytes((folder / name).read_bytes())
    seals = [
        manifest.seal(f, "weights", 1, names)
        for f, names in ((folder, ["a.bin", "b.bin"]), (other, ["b.bin", "a.bin"]))
    ]
    assert seals[0].digest == seals[1].digest
    assert (folder / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()
    assert manifest.Manifest(**{**seals[0].model_dump(), "count": 2}).digest != seals[0].digest


def test_every_kind_of_damage_is_named(folder: Path):
    (folder / "c.bin").write_bytes(b"ccc")
    manifest.seal(folder, "weights", 1, ["a.bin", "b.bin", "c.bin"])
    (folder / "a.bin").unlink()
    (folder / "b.bin").write_bytes(b"longer")
    (folder / "c.bin").write_bytes(b"ccd")
    missing, resized, changed = manifest.problems(folder)
    assert missing.endswith("a.bin: missing")
    assert resized.endswith("b.bin: 6 bytes instead of the sealed 2")
    assert "c.bin: content changed" in changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged manifest"),
        ('{"format": 1, "kind": "weights"}', "damaged manifest"),
        ('{"format": 1, "kind": "weights", "count": 1, "files": [], "extra": 1}', "damaged manifest"),
        (json.dumps({"format": 2}), "format 2 is not the 1"),
    ],
)
def test_unreadable_manifests_are_named(folder: Path, text: str, message: str):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=f"manifest.json: {message}") as caught:
        manifest.read(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_unsealed_folders_are_told_apart(folder: Path):
    with pytest.raises(UserError, match="no such folder"):
        manifest.read(folder / "missing")
    with pytest.raises(UserError, match="not sealed"):
        manifest.read(folder)
