"""Each file of a folder or archive is a sample, part of a sample, refused by name, or counted with a reason."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from present import present

from entroloop.data.errors import UserError
from entroloop.data.sources import listing
from entroloop.data.sources.base import ImageSource
from entroloop.data.sources.listing import spelled
from entroloop.data.sources.recognise import open_source


def picture(number: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), number).save(out, "PNG")
    return out.getvalue()


def refused(source: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(source))
    assert "\n" not in str(caught.value)


# --- random trees -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """An entry of a tree: a file, a `link` or a `hard` one to FIRST, a `lost` link, a `loop`, a pipe, or `holes`."""

    name: str
    kind: str


FIRST = "0.png"
KINDS = {
    "folder": ("file", "link", "lost", "loop", "pipe"),
    "zip": ("file", "link", "lost"),
    "tar": ("file", "link", "hard", "lost", "loop", "pipe", "holes"),
}
FOLDERS = ["", "", "d/", "dé/", "de\u0301/", ".d/", "d/.d/d/", "__MACOSX/"]
STEMS = ["a", "b", "é", "e\u0301", "Ü", ".h", "x y", "n\nl", "caf\udce9"]
SUFFIXES = [".png", ".PNG", ".jpg", ".txt", ".CLS", ".cls", ""]


def trees(container: str):
    names = st.builds("".join, st.tuples(*map(st.sampled_from, (FOLDERS, STEMS, SUFFIXES))))
    items = st.lists(st.builds(Item, names, st.sampled_from(KINDS[container])), max_size=7)
    return items.map(lambda found: [Item(FIRST, "file"), *found])


def content(item: Item) -> bytes:
    if item.name.lower().endswith(".cls"):
        return b"1"
    return picture(sum(os.fsencode(item.name)) % 256) if item.name != FIRST else picture()


def build_folder(path: Path, items: list[Item]) -> None:
    path.mkdir()
    for item in items:
        place = path / item.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if item.kind == "file":
            place.write_bytes(content(item))
        elif item.kind == "pipe":
            os.mkfifo(place)
        else:
            up = "../" * item.name.count("/")
            place.symlink_to({"link": up + FIRST, "lost": "nowhere", "loop": up or "."}[item.kind])


def build_zip(path: Path, items: list[Item]) -> None:
    with zipfile.ZipFile(path, "w") as out:
        for item in items:
            info = zipfile.ZipInfo(item.name)
            info.create_system = 3
            link = {"link": "../" * item.name.count("/") + FIRST, "lost": "nowhere"}.get(item.kind)
            info.external_attr = ((stat.S_IFREG if link is None else stat.S_IFLNK) | 0o644) << 16
            with warnings.catch_warnings(action="ignore"):  # of names that are there twice
                out.writestr(info, content(item) if link is None else link)


def build_tar(path: Path, items: list[Item]) -> None:
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as out:
        for item in items:
            info = tarfile.TarInfo(item.name)
            payload = content(item)
            if item.kind == "file":
                info.size = len(payload)
            elif item.kind == "pipe":
                info.type = tarfile.FIFOTYPE
            elif item.kind == "holes":  # GNU's old form: data of 1 byte at byte 3 of 4
                info.type, info.size = tarfile.GNUTYPE_SPARSE, 1
                head = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
                head[386:410] = b"00000000003\0" + b"00000000001\0"
                head[483:495] = b"00000000004\0"
                head[148:156] = b"%06o\0 " % (sum(head) - sum(head[148:156]) + 256)
                out.fileobj.write(bytes(head) + b"x".ljust(512, b"\0"))
                out.offset += 1024
                continue
            else:
                info.type = tarfile.LNKTYPE if item.kind == "hard" else tarfile.SYMTYPE
                up = "" if item.kind == "hard" else "../" * item.name.count("/")
                info.linkname = {"lost": "nowhere", "loop": up or "."}.get(item.kind, up + FIRST)
            out.addfile(info, io.BytesIO(payload) if item.kind == "file" else None)


def hidden_part(name: str) -> str | None:
    parts = name.split("/")
    at = next((i for i, part in enumerate(parts) if part.startswith(".") or part == "__MACOSX"), None)
    return None if at is None else "/".join(parts[: at + 1])


def expected(container: str, items: list[Item]) -> tuple[dict[str, bytes], int, set[str], bool]:
    """Samples with their bytes, the number of labels in files, the ignored, and whether the source is refused."""
    samples, parts, ignored, bad = {}, 0, set(), False
    shown = {}
    for item in items:
        if (hidden := hidden_part(item.name)) is not None:
            ignored.add(spelled(os.fsencode(hidden)))
            continue
        name = spelled(os.fsencode(item.name))
        bad |= name in shown  # twice
        shown[name] = item
    keys: dict[str, list[str]] = {}
    for name, item in shown.items():
        if name.endswith((".png", ".PNG", ".jpg")):
            bad |= item.kind in ("lost", "loop", "pipe", "holes")
            samples[name] = content(item) if item.kind == "file" else picture()
            keys.setdefault(name.split(".")[0], []).append(name)
    bad |= container == "tar" and any(len(found) > 1 for found in keys.values())
    labels = set()
    for name, item in shown.items():
        if container == "tar" and name.lower().endswith(".cls"):
            parts += 1
            key = name.split(".")[0]
            bad |= item.kind != "file" or key not in keys or key in labels  # a link would lead to a picture
            labels.add(key)
        elif name not in samples:
            bad |= item.kind == "lost" and "." not in name  # it may have led to a folder of samples
            ignored.add(name)
    return samples, parts, ignored, bad


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_samples_ignored_and_refused_are_all_that_was_put_in(container: str, data: st.DataObject):
    items = data.draw(trees(container))
    if container == "folder":  # which holds a name once
        items = list({item.name: item for item in items}.values())
    if container == "zip":  # whose names are text
        items = [Item(item.name.encode(errors="replace").decode(), item.kind) for item in items]
    samples, parts, ignored, bad = expected(container, items)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "source")
        {"folder": build_folder, "zip": build_zip, "tar": build_tar}[container](path, items)
        path = path.rename(path.with_suffix(".tar")) if container == "tar" else path
        if bad:
            refused(path, "source")
            return
        source = open_source(str(path))
        assert isinstance(source, ImageSource)
        assert {name: source.payload(row) for row, name in enumerate(source.names)} == samples
        assert source.ignored.keys() == ignored
        assert all(source.ignored.values())
        visible = [item for item in items if hidden_part(item.name) is None]
        hidden = {spelled(os.fsencode(part)) for item in items if (part := hidden_part(item.name)) is not None}
        assert len(source.names) + parts + len(source.ignored) == len(visible) + len(hidden)


# --- single cases -------------------------------------------------------------------------------------------------


def test_joined_and_damaged_tars_are_refused(tmp_path: Path):
    for name in "ab":
        build_tar(tmp_path / f"{name}.tar", [Item(f"{name}.png", "file"), Item(f"{name}2.png", "file")])
    both = tmp_path / "both.tar"
    both.write_bytes(b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "ab"))
    refused(both, "both.tar: damaged or truncated tar .it goes on after its end mark")
    raw = bytearray((tmp_path / "a.tar").read_bytes())
    raw[1024 + 100] ^= 1  # in the second header, which tarfile takes for the end
    both.write_bytes(raw)
    refused(both, "header at byte 1024 is damaged")


def test_joined_zips_are_refused(tmp_path: Path):
    for name in "ab":
        build_zip(tmp_path / f"{name}.zip", [Item(f"{name}.png", "file")])
    both = tmp_path / "both.zip"
    both.write_bytes((tmp_path / "a.zip").read_bytes() + (tmp_path / "b.zip").read_bytes())
    refused(both, "another archive comes before this one")


def test_names_in_zips_are_utf8_wherever_that_is_kept(tmp_path: Path):
    found: list[str] = []
    for name, extra in ((b"\xc3\xa9.png", b""), (b"\x82.png", b""), (b"??.png", b"\xc3\xa9.png"), (b"\xe9.png", b"")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
            info = zipfile.ZipInfo("x" * len(name))
            field = b"\1" + struct.pack("<I", zlib.crc32(name)) + extra
            info.extra = struct.pack("<HH", 0x7075, len(field)) + field if extra else b""
            out.writestr(info, picture())
        raw = (tmp_path / "a.zip").read_bytes()
        (tmp_path / "a.zip").write_bytes(raw.replace(b"x" * len(name), name))
        source = open_source(str(tmp_path / "a.zip"))
        assert isinstance(source, ImageSource)
        assert source.payload(0) == picture()
        found += source.names
    assert found == ["é.png", "é.png", "é.png", "Θ.png"]  # code page 437 has é at 0x82


def test_classes_of_zips_with_windows_separators(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        for name in ("cats\\", "cats\\0.png", "dogs\\1.png"):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            out.writestr(info, picture() if name.endswith("g") else b"")
    source = open_source(str(tmp_path / "a.zip"))
    assert (list(source.names), source.classes) == (["cats/0.png", "dogs/1.png"], ("cats", "dogs"))
    assert not source.ignored


def test_a_folder_of_tars_takes_capitals_and_refuses_compressed_ones(tmp_path: Path):
    for number, name in enumerate(("s0.tar", "sub/s0.TAR", "notes.txt", "s1.tar.md5")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        build_tar(tmp_path / name, [Item(f"{number}.png", "file")])
    source = open_source(str(tmp_path))
    assert list(source.names) == ["s0.tar/0.png", "sub/s0.TAR/1.png"]
    assert source.ignored == {"notes.txt": "of another kind", "s1.tar.md5": "of another kind"}
    for name in ("s2.tar.gz", "s2.TGZ"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "s0.tar").read_bytes()))
        refused(tmp_path, f"{name}: is compressed, .*gunzip it first")
        (tmp_path / name).unlink()
    (tmp_path / "s3.tar").symlink_to("nowhere")
    refused(tmp_path, "s3.tar is a link that cannot be followed")
    (tmp_path / "s3.tar").rename(tmp_path / "more")
    refused(tmp_path, "more is a link that cannot be followed")


def test_links_in_tars_lead_through_folders_and_hidden_files(tmp_path: Path):
    (tmp_path / "src/a").mkdir(parents=True)
    (tmp_path / "src/.store").mkdir()
    (tmp_path / "src/.store/x").write_bytes(picture(1))
    (tmp_path / "src/a/0.png").write_bytes(picture(2))
    (tmp_path / "src/b").symlink_to("a")
    (tmp_path / "src/c").mkdir()
    (tmp_path / "src/c/1.png").symlink_to("../b/../.store/x")
    (tmp_path / "src/c/2.png").symlink_to("../b/0.png")
    os.link(tmp_path / "src/a/0.png", tmp_path / "src/c/3.png")
    subprocess.run(["tar", "--sort=name", "-C", "src", "-cf", "all.tar", "."], check=True, cwd=tmp_path)
    source = open_source(str(tmp_path / "all.tar"))
    assert isinstance(source, ImageSource)
    read = {name: source.payload(row) for row, name in enumerate(source.names)}
    pictures = {"a/0": 2, "c/1": 1, "c/2": 2, "c/3": 2}
    assert read == {f"./{name}.png": picture(number) for name, number in pictures.items()}
    assert dict(source.ignored) == {".store": "hidden", "./b": "a link to a folder of this archive"}
    (tmp_path / "src/c/4.png").symlink_to("../../elsewhere.png")
    subprocess.run(["tar", "-C", "src", "-cf", "all.tar", "."], check=True, cwd=tmp_path)
    refused(tmp_path / "all.tar", r"./c/4.png is a link to ../../elsewhere.png, which is not in this archive")
    (tmp_path / "src/c/4.png").rename(tmp_path / "src/class")
    subprocess.run(["tar", "-C", "src", "-cf", "all.tar", "."], check=True, cwd=tmp_path)
    refused(tmp_path / "all.tar", r"./class is a link to ../../elsewhere.png")


def test_sparse_members_of_gnu_tar_are_refused(tmp_path: Path):
    Image.new("L", (512, 512)).save(tmp_path / "a.bmp")
    os.truncate(tmp_path / "a.bmp", 2**20)  # tar looks for holes only in files of fewer blocks than bytes
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    for form in ("gnu", "posix"):
        options = ["-S", "--hole-detection=raw", f"--format={form}"]
        subprocess.run(["tar", *options, "-cf", "h.tar", "a.bmp", "b.png"], check=True, cwd=tmp_path)
        refused(tmp_path / "h.tar", "h.tar: a.bmp is stored with holes: make the tar without --sparse")


def test_names_twice_are_refused_also_where_accents_differ(tmp_path: Path):
    path = tmp_path / "a.tar"
    build_tar(path, [Item("0.png", "file"), Item("./0.png", "file")])
    refused(path, "holds the name ./0.png twice")
    (tmp_path / "src").mkdir()
    for form in ("NFC", "NFD"):
        (tmp_path / "src" / (unicodedata.normalize(form, "é") + ".png")).write_bytes(picture())
    refused(tmp_path / "src", "holds the name é.png twice")


def test_classes_and_edm_labels_do_not_depend_on_how_accents_are_coded(tmp_path: Path):
    found = []
    for form in ("NFC", "NFD"):
        for name in ("é/0.png", "f/1.png", "z/2.png"):  # in bytes é comes last in NFC and first in NFD
            path = tmp_path / form / unicodedata.normalize(form, name)
            path.parent.mkdir(parents=True)
            path.write_bytes(picture())
        source = open_source(str(tmp_path / form))
        (tmp_path / form / "dataset.json").write_text(
            '{"labels": [["e\u0301/0.png", 5], ["f/1.png", 6], ["z/2.png", 7]]}'
        )
        edm = open_source(str(tmp_path / form))
        found.append(
            (list(source.names), present(source.labels).tolist(), source.classes, present(edm.labels).tolist())
        )
    assert found[0] == found[1]
    assert found[0] == (["f/1.png", "z/2.png", "é/0.png"], [0, 1, 2], ("f", "z", "é"), [6, 7, 5])


def test_names_are_the_same_in_every_locale(tmp_path: Path):
    (tmp_path / "src").mkdir()
    for name in (b"caf\xe9.png", "é.png".encode(), "e\u0301.txt".encode()):
        Path(os.fsdecode(bytes(tmp_path / "src") + b"/" + name)).write_bytes(picture())
    subprocess.run(["tar", "-C", "src", "-cf", "a.tar", "."], check=True, cwd=tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom entroloop.data.sources import archives, listing\n"
        "folder, tar = listing.of_folder(Path('src')), archives.of_tar(Path('a.tar'))\n"
        "files = [folder.path(name).read_bytes() for name in folder.entries]\n"
        "print(ascii([sorted(folder.entries), sorted(name[2:] for name in tar.entries), len(files)]))"
    )
    found = []
    for locale in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment = {**os.environ, **locale}
        command = [sys.executable, "-c", code]
        found.append(subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True).stdout)
    names = ["caf\\xe9.png", "é.png", "é.txt"]
    assert [line.decode().strip() for line in found] == [ascii([names, names, 3])] * 2


def test_images_of_another_split_are_counted_as_such(tmp_path: Path):
    for name in ("train/0.png", "Training/1.png", "test/2.png", "train/n.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    source = open_source(str(tmp_path))
    assert list(source.names) == ["Training/1.png", "train/0.png"]
    assert source.ignored == {"test/2.png": "of another split", "train/n.txt": "of another kind"}
    assert listing.told(source.ignored) == (
        "2 others ignored (1 of another split, as test/2.png; 1 of another kind, as train/n.txt)"
    )
