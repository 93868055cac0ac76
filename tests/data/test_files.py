from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from places import small_disk

from entroloop.data import files, owners
from entroloop.data.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_create_keeps_the_first_and_replace_takes_the_last(tmp_path: Path):
    path = tmp_path / "new" / "file"
    assert files.create(path, lambda f: f.write(b"one"))
    assert not files.create(path, lambda f: f.write(b"two"))
    assert path.read_bytes() == b"one"
    files.replace(path, lambda f: f.write(b"three"))
    assert path.read_bytes() == b"three"
    files.put(path, b"four")
    assert path.read_bytes() == b"four"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("is_file", [False, True])
def test_a_folder_that_another_process_has_made_is_named_and_kept(tmp_path: Path, is_file):
    path = tmp_path / "path"

    def too_late():
        with files.new_folder(path) as own:
            own.mkdir()
            files.put(path if is_file else path / "x", b"theirs")

    with pytest.raises(UserError, match=r"path: another process has made it meanwhile: choose another name"):
        too_late()
    assert (path if is_file else path / "x").read_bytes() == b"theirs"


@pytest.mark.parametrize("write", [files.create, files.replace])
def test_a_fence_is_passed_before_a_folder_is_made(tmp_path: Path, write):
    def fence():
        raise UserError("moved")

    with files.fenced(fence), pytest.raises(UserError, match="moved"):
        write(tmp_path / "old place" / "file", lambda f: f.write(b"late"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [files.create, files.replace])
def test_nothing_is_left_when_writing_fails(tmp_path: Path, write):
    def half(file):
        file.write(b"half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write(tmp_path / "file", half)
    assert names(tmp_path) == []


def test_file_systems_without_hard_links_are_served(tmp_path: Path, monkeypatch):
    def no_link(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    assert files.create(tmp_path / "file", lambda f: f.write(b"one"))
    assert not files.create(tmp_path / "file", lambda f: f.write(b"two"))
    assert (tmp_path / "file").read_bytes() == b"one"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [files.create, files.replace])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, write):
    with small_disk(tmp_path / "disk", "64k") as disk:
        with pytest.raises(UserError, match="file: no space left on device: free some space") as caught:
            write(disk / "file", lambda f: f.write(bytes(200_000)))
        assert "\n" not in str(caught.value)
        assert names(disk) == []


@contextlib.contextmanager
def largest_file(size: int):
    """The limit on file sizes, which makes the operating system refuse a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "bytes": lambda f: f.write(bytes(1 << 20)),
    "torch.save": lambda f: torch.save(torch.zeros(1 << 18), f),
    "np.save": lambda f: np.save(f, np.zeros(1 << 18)),
    "np.savez": lambda f: np.savez(f, a=np.zeros(1 << 18), b=np.zeros(9)),
    "savez_compressed": lambda f: np.savez_compressed(f, a=np.random.default_rng(0).normal(size=1 << 18)),
    "safetensors": lambda f: safetensors.torch.save_file({"a": torch.zeros(1 << 18)}, f.name),
    "Pillow": lambda f: Image.effect_noise((999, 999), 99).save(f, "png"),
    "a library that tells nothing": lambda f: _silently(f),
}


def _silently(file):
    try:
        file.write(bytes(1 << 20))
        file.flush()
    except OSError:
        pass
    raise RuntimeError("something went wrong")


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_refused_write_is_one_line_whatever_the_library_makes_of_it(tmp_path: Path, write):
    with largest_file(1 << 16), pytest.raises(UserError, match=r"/file: file too large: raise the limit") as caught:
        files.replace(tmp_path / "file", write)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_line_is_whole_or_absent(tmp_path: Path):
    files.add_line(tmp_path / "lines", {"a": 1})
    with largest_file(1 << 14), pytest.raises(UserError, match=r"/lines: file too large"):
        files.add_line(tmp_path / "lines", {"a": "b" * (1 << 15)})
    files.add_line(tmp_path / "lines", {"a": 2})
    assert (tmp_path / "lines").read_text() == '{"a": 1}\n{"a": 2}\n'


def test_lines_that_were_cut_short_are_left_out(tmp_path):
    assert list(files.json_lines(tmp_path / "lines")) == list(files.json_lines(tmp_path / "a" / "lines")) == []
    (tmp_path / "lines").write_bytes(b'{"a": 1}\n\n{"a": \n[2]\n{"a": 3')
    assert list(files.json_lines(tmp_path / "lines")) == [(1, {"a": 1}), (4, [2])]


def test_the_clean_up_hides_no_refusal(tmp_path: Path):
    (tmp_path / "a file").write_text("")
    for path in (tmp_path / "a file" / "x", tmp_path / "a file" / "new" / "x"):
        with pytest.raises(UserError, match=r"a file.*: (not a directory|file exists): .*path"):
            files.put(path, b"")
    with pytest.raises(UserError, match=r"/proc: no such file or directory|/proc/x"):
        files.put(Path("/proc/x"), b"")


def test_equal_bytes_are_left_alone_on_a_disk_that_is_read_only(tmp_path: Path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        files.put(disk / "x", b"one")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        files.put(disk / "x", b"one")
        with pytest.raises(UserError, match=r"disk/x: read-only file system: give a path on a disk"):
            files.put(disk / "x", b"two")
        assert (disk / "x").read_bytes() == b"one"


def _try_to_create(path: Path, text: bytes, ready, answers) -> None:
    ready.wait()
    answers.put((text, files.create(path, lambda f: f.write(text))))


def test_of_many_writers_exactly_one_wins(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    ready, answers = context.Barrier(4), context.Queue()
    texts = [bytes([65 + i]) * 100_000 for i in range(4)]
    writers = [context.Process(target=_try_to_create, args=(tmp_path / "f", t, ready, answers)) for t in texts]
    for writer in writers:
        writer.start()
    results = [answers.get(timeout=30) for _ in writers]
    for writer in writers:
        writer.join()
    winners = [text for text, won in results if won]
    assert len(winners) == 1
    assert (tmp_path / "f").read_bytes() == winners[0]


def test_a_sweep_asks_who_owns_a_temporary_and_never_a_clock(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(owners, "WATCH", 0.3)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{files.TEMPORARY}abc-x").write_text("of nobody")
    (tmp_path / "sub" / "kept").write_text("kept")
    with files.temporary(tmp_path / "sub" / "x") as living:
        living.write_text("at work")
        os.utime(living, (0, 0))
        files.sweep_temporaries(tmp_path)
        assert set(names(tmp_path / "sub")) == {"kept", living.name}
    assert names(tmp_path / "sub") == ["kept"]


def test_a_file_that_is_replaced_takes_what_killed_writers_left_with_it(tmp_path: Path):
    writer = os.fork()
    if writer == 0:
        files.replace(tmp_path / "x", lambda file: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(writer, 0)
    assert len(names(tmp_path)) == 1
    files.put(tmp_path / "x", b"x")
    assert names(tmp_path) == ["x"]


def test_json_is_canonical_and_digests_follow_values():
    assert files.json_bytes({"b": 1, "a": "ü"}) == '{\n  "a": "ü",\n  "b": 1\n}\n'.encode()
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.json_bytes(float("nan"))


def test_sha256_of_a_known_text(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nothing_but_a_file_is_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    places = ["pipe", "folder"]
    if os.getuid() == 0:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # reading it would never end
        places.append("device")
    for name in places:
        before = (tmp_path / name).lstat()
        for write in (lambda path: files.put(path, b"x"), files.check_place):
            with pytest.raises(UserError, match=f"{name}: is a (device or pipe|folder): give the name of a file"):
                write(tmp_path / name)
        assert (tmp_path / name).lstat().st_ino == before.st_ino
    assert names(tmp_path) == sorted(places)
