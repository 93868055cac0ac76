"""Remote shards against a server that stalls, cuts and corrupts."""

from __future__ import annotations

import concurrent.futures as futures
import http.server
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from present import present
from test_streaming import COUNTS, N, make

from entroloop.data.address import is_remote
from entroloop.data.errors import UserError
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.remote import Remote, RemoteDataset, make_room, open_dataset
from entroloop.data.streams.streaming import Streaming


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `faults[name]` says what to do wrong with the next requests for that file."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[Any]] = {}
        self.requests: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set"
        self.lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/set/")
        with self.server.lock:
            self.server.requests[name] += 1
            waiting = self.server.faults.get(name, [])
            fault = waiting.pop(0) if waiting else None
        path = self.server.folder / name
        if fault in (403, 404, 500, 503) or not path.is_file():
            self.send_error(fault or 404)
            return
        payload = path.read_bytes()
        if fault == "corrupt":
            payload = payload[:100] + bytes([payload[100] ^ 1]) + payload[101:]
        if fault == "longer":
            payload += b"x"
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        half = len(payload) // 2
        self.wfile.write(payload[:half])
        if fault == "cut":
            return
        if fault == "stall":
            self.wfile.flush()
            time.sleep(1.5)
            return
        if fault == "slow":
            time.sleep(0.3)
        self.wfile.write(payload[half:])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    make(tmp_path / "set", COUNTS)
    with Server(tmp_path / "set") as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def remote_set(server: Server, cache: Path, **kwargs) -> RemoteDataset:
    return RemoteDataset(Remote(server.url, cache, **{"timeout": 0.4, "backoff": 0.01, **kwargs}))


def whole(dataset) -> np.ndarray:
    found = list(Streaming(dataset, workers=0).batches(seed=0, seen=0, until=N, batch=N))
    return found[0].samples.numpy()[np.argsort(found[0].ids)]


def test_a_remote_set_is_read_as_a_local_one_and_fetched_once(server, tmp_path):
    local = open_dataset(str(server.folder))
    dataset = remote_set(server, tmp_path / "cache")
    assert dataset.manifest == local.manifest
    assert np.array_equal(whole(dataset), local.all())
    assert np.array_equal(dataset.all(), local.all())
    assert np.array_equal(present(dataset.labels), present(local.labels))
    assert np.array_equal(whole(remote_set(server, tmp_path / "cache")), local.all())
    assert {name: n for name, n in server.requests.items() if n > 1} == {"manifest.json": 2}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "stall", "corrupt", "longer", 500, 503])
def test_faults_are_tried_again(server, tmp_path, fault):
    server.faults["shard-000001.tar"] = [fault, fault]
    server.faults["manifest.json"] = [] if fault in ("corrupt", "longer") else [fault]
    assert np.array_equal(whole(remote_set(server, tmp_path / "cache")), open_dataset(str(server.folder)).all())
    assert server.requests["shard-000001.tar"] == 3
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@pytest.mark.slow
def test_lasting_faults_stop_the_run_with_one_line(server, tmp_path):
    for fault, message in (
        ("cut", "the connection ended .* bytes early"),
        ("corrupt", "SHA-256 differs"),
        ("longer", "more than"),
        ("stall", "timed out"),
        (503, "503"),
    ):
        server.faults["shard-000001.tar"] = [fault] * 3
        with pytest.raises(UserError, match=f"/set/shard-000001.tar: could not be fetched in 3 .*{message}") as caught:
            whole(remote_set(server, tmp_path / "cache", attempts=3))
        assert "\n" not in str(caught.value)
    server.faults["shard-000001.tar"] = [403]
    before = server.requests["shard-000001.tar"]
    with pytest.raises(UserError, match="the server answered 403"):
        whole(remote_set(server, tmp_path / "cache"))
    assert server.requests["shard-000001.tar"] == before + 1
    with pytest.raises(UserError, match=r"/nothing/manifest.json: the server answered 404"):
        open_dataset(f"{server.url}/nothing", cache=tmp_path / "cache")
    (server.folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"/set/manifest.json: damaged manifest"):
        remote_set(server, tmp_path / "cache")


def test_the_cache_keeps_its_bound_and_evicts_what_was_used_least_recently(server, tmp_path):
    sizes = {e.name: e.bytes for e in remote_set(server, tmp_path / "c").manifest.files}
    limit = 3 * max(sizes.values())
    dataset = remote_set(server, tmp_path / "cache", limit=limit)
    for shard in range(len(COUNTS)):
        dataset.shard(shard)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= limit
    assert np.array_equal(whole(dataset), open_dataset(str(server.folder)).all())
    for i, name in enumerate("abc"):
        path = tmp_path / "lru" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10))
        os.utime(path, (i, i))
    os.utime(tmp_path / "lru" / "a", (9, 9))
    make_room(tmp_path / "lru", 25)
    assert sorted(path.name for path in (tmp_path / "lru").iterdir()) == ["a", "c"]


def test_a_file_evicted_before_it_is_opened_is_fetched_again(server, tmp_path, monkeypatch):
    dataset = remote_set(server, tmp_path / "cache")
    fetch = dataset.path
    calls: Counter[str] = Counter()

    def path(name: str) -> Path:
        found = fetch(name)
        calls[name] += 1
        if name.endswith(".tar") and calls[name] == 1:
            found.unlink()
        return found

    monkeypatch.setattr(dataset, "path", path)
    assert np.array_equal(whole(dataset), open_dataset(str(server.folder)).all())


def test_many_readers_fetch_a_file_once(server, tmp_path):
    datasets = [remote_set(server, tmp_path / "cache", timeout=10) for _ in range(5)]
    server.faults["shard-000002.tar"] = ["slow"]
    with futures.ThreadPoolExecutor(5) as pool:
        paths = set(pool.map(lambda d: d.path("shard-000002.tar"), datasets))
    assert len(paths) == 1
    assert server.requests["shard-000002.tar"] == 1


def test_a_file_that_another_finishes_meanwhile_is_not_fetched_again(server, tmp_path, monkeypatch):
    one, other = (remote_set(server, tmp_path / "cache") for _ in range(2))
    lock = filelock.FileLock

    def later(path):
        monkeypatch.setattr(filelock, "FileLock", lock)
        other.path("shard-000002.tar")
        return lock(path)

    monkeypatch.setattr(filelock, "FileLock", later)
    assert one.path("shard-000002.tar").is_file()
    assert server.requests["shard-000002.tar"] == 1
    assert not list((tmp_path / "cache").glob(".tmp-*"))


def test_a_download_left_by_a_killed_process_is_taken_over(server, tmp_path):
    dataset = remote_set(server, tmp_path / "cache", timeout=0.1)
    path = dataset.path("shard-000000.tar")
    (tmp_path / "cache" / f".tmp-{path.name}").write_bytes(path.read_bytes()[:100])
    path.unlink()
    assert dataset.path("shard-000000.tar").is_file()
    assert not list((tmp_path / "cache").glob(".tmp-*"))


def test_pipes_and_fsspec(server, tmp_path):
    pytest.importorskip("fsspec")
    folder = Path(shutil.copytree(server.folder, tmp_path / "a set"))
    expected = open_dataset(str(folder)).all()
    for i, source in enumerate((f"pipe:cat '{folder}'/{{}}", f"file://{folder}", f"{server.url}/")):
        assert np.array_equal(whole(open_dataset(source, cache=tmp_path / f"cache{i}")), expected)
    for source, message in (
        ("pipe:echo some words >&2; exit 3 # {}", "exit status 3: some words"),
        ("pipe:sleep 9; cat {}", r"no byte in 0\.1 s"),
        (f"file://{tmp_path}/none", "cannot be read"),
        ("nonsense://x/y", "reading nonsense: needs fsspec"),
    ):
        with pytest.raises(UserError, match=message):
            RemoteDataset(Remote(source, tmp_path / "c", attempts=2, timeout=0.1, backoff=0.01))


def test_addresses_are_told_from_paths():
    assert all(map(is_remote, ("https://h/x", "s3://b/x", "gs://b/x", "pipe:cat {}")))
    assert not any(map(is_remote, ("x", "/x/y", "./s3", "C:x")))


def test_schemes_that_fsspec_lacks_go_through_webdataset(server, tmp_path, monkeypatch):
    import webdataset

    opened = []

    def gopen(address: str):
        opened.append(address)
        return (server.folder / address.rpartition("/")[2]).open("rb")

    monkeypatch.setattr(webdataset, "gopen", gopen)
    dataset = RemoteDataset(Remote("ais://bucket/set", tmp_path / "cache", attempts=2, backoff=0.01))
    assert np.array_equal(dataset.all(), open_dataset(str(server.folder)).all())
    assert opened[0] == "ais://bucket/set/manifest.json"


def test_a_remote_set_can_be_imported(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import_dataset(server.url, tmp_path / "out", Settings(resolution=2))
    found, original = Dataset(tmp_path / "out"), Dataset(server.folder)
    assert np.array_equal(present(found.labels), present(original.labels))
    means = original.all().reshape(N, 3, 2, 2, 2, 2).mean((3, 5))
    assert np.abs(found.all() - means).max() <= 0.5
    with pytest.raises(UserError, match="--split test"):
        import_dataset(server.url, tmp_path / "out2", Settings(split="test"))
