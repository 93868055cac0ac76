"""Storage services: an S3 server (moto) and an emulator of Google's, behind a proxy that cuts, corrupts and refuses."""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loops import VECTORS, command, tiny_file
from present import present
from test_streaming import COUNTS, N, make

from entroloop.data.errors import UserError
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.settings import Settings
from entroloop.data.store import transfer
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.remote import Remote, RemoteDataset, open_dataset
from entroloop.data.streams.streaming import Streaming

pytestmark = pytest.mark.slow

boto3 = pytest.importorskip("boto3")


class Proxy(http.server.ThreadingHTTPServer):
    """Forwards to a service. `faults[name]` lists what goes wrong with the next answers that hold that file's bytes."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = (host, port)
        self.faults: dict[str, list[Any]] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """The client has ended the connection."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream[0], self.server.upstream[1], timeout=20)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        upstream.request(self.command, self.path, headers=headers)
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        path, _, query = self.path.partition("?")
        waiting = self.server.faults.get(urllib.parse.unquote(path).rpartition("/")[2], [])
        # gcsfs asks for facts in JSON first; a fault in these would test nothing of the file's own bytes.
        of_bytes = self.command == "GET" and ("/o/" not in path or "alt=media" in query or "/download/" in path)
        fault = waiting.pop(0) if waiting and (of_bytes or isinstance(waiting[0], int)) else None
        status = fault if isinstance(fault, int) else answer.status
        if isinstance(fault, int):
            body = b'{"error": {"code": %d, "message": "Token SECRET-IN-ANSWER has expired"}}' % fault
        if fault == "corrupt":
            body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
        self.send_response(status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if fault in ("cut", "stall") else body)
        if fault == "stall":
            time.sleep(2)
        if fault in ("cut", "stall"):
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for


def post(address: str, body: bytes) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(address, body, headers)).close()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("local")
    make(folder / "set", COUNTS)
    import_dataset("wine", folder / "wine", Settings(shard_size=60))
    return folder


@pytest.fixture(scope="module")
def s3(local: Path) -> Iterator[SimpleNamespace]:
    """moto's server with a bucket of both sets. It knows one user and refuses all others."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    anyone = {"endpoint_url": url, "aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    store, users = boto3.client("s3", **anyone), boto3.client("iam", **anyone)
    store.create_bucket(Bucket="bucket")
    for path in sorted(local.rglob("*.*")):
        store.put_object(Bucket="bucket", Key=str(path.relative_to(local)), Body=path.read_bytes())
    users.create_user(UserName="reader")
    allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    users.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(allowed))
    key = users.create_access_key(UserName="reader")["AccessKey"]
    post(f"{url}/moto-api/reset-auth", b"0")
    yield SimpleNamespace(host=host, port=port, id=key["AccessKeyId"], secret=key["SecretAccessKey"])
    server.stop()


@pytest.fixture(scope="module")
def gs(local: Path) -> Iterator[SimpleNamespace]:
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    for path in sorted(local.rglob("*.*")):
        name = urllib.parse.quote(str(path.relative_to(local)), safe="")
        address = f"http://127.0.0.1:{port}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
        post(address, path.read_bytes())
    yield SimpleNamespace(host="127.0.0.1", port=port)
    server.stop()


@pytest.fixture(params=["s3", "gs"])
def service(request, monkeypatch, tmp_path) -> Iterator[SimpleNamespace]:
    """The environment of one service behind the proxy. `environment` is what was set."""
    import fsspec

    known = request.getfixturevalue(request.param)
    with Proxy(known.host, known.port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        set_here = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
        if request.param == "s3":
            set_here |= {"AWS_ACCESS_KEY_ID": known.id, "AWS_SECRET_ACCESS_KEY": known.secret}
            set_here |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
        else:
            set_here |= {"STORAGE_EMULATOR_HOST": proxy.url}
        set_here |= {"AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true"}
        for name, value in set_here.items():
            monkeypatch.setenv(name, value)
        forget = fsspec.get_filesystem_class(request.param).clear_instance_cache
        forget()
        yield SimpleNamespace(
            scheme=request.param, proxy=proxy, environment=set_here, root=f"{request.param}://bucket", forget=forget
        )
        forget()
        proxy.shutdown()
        thread.join()


@pytest.fixture
def impatient(monkeypatch) -> None:
    """gcsfs does not wait between its own attempts."""
    import asyncio

    import gcsfs.retry

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(0)))


def remote_set(service: SimpleNamespace, cache: Path, name: str = "set", **kwargs) -> RemoteDataset:
    return RemoteDataset(Remote(f"{service.root}/{name}", cache, **{"timeout": 5, "backoff": 0.01, **kwargs}))


def test_a_set_is_streamed_and_imported(service, local, tmp_path):
    expected = Dataset(local / "set")
    dataset = remote_set(service, tmp_path / "cache")
    assert dataset.manifest == expected.manifest
    found = next(iter(Streaming(dataset, workers=0).batches(seed=0, seen=0, until=N, batch=N)))
    assert np.array_equal(found.samples.numpy()[np.argsort(found.ids)], expected.all())
    import_dataset(f"{service.root}/set", tmp_path / "out")
    assert np.array_equal(Dataset(tmp_path / "out").all(), expected.all())
    assert np.array_equal(present(Dataset(tmp_path / "out").labels), present(expected.labels))


@pytest.mark.parametrize("fault", ["cut", "corrupt", "stall", 503])
def test_faults_are_tried_again(service, local, tmp_path, fault, impatient):
    service.proxy.faults["shard-000001.tar"] = [fault, fault]
    begun = time.monotonic()
    found = remote_set(service, tmp_path / "cache", timeout=0.5 if fault == "stall" else 5).all()
    assert fault != "stall" or time.monotonic() - begun < 4  # and not the two stalls to their ends
    assert np.array_equal(found, Dataset(local / "set").all())
    assert service.proxy.faults["shard-000001.tar"] == []
    assert not list((tmp_path / "cache").glob(".tmp-*"))


def test_a_lasting_fault_and_a_dead_service_are_one_line(service, tmp_path, monkeypatch, impatient, caplog, capfd):
    service.proxy.faults["shard-000001.tar"] = ["corrupt"] * 99
    with pytest.raises(
        UserError, match=r"/set/shard-000001\.tar: could not be fetched in 2 attempts \(.*(SHA|hecksum)"
    ):
        remote_set(service, tmp_path / "cache", attempts=2).all()
    for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    service.forget()
    with pytest.raises(UserError, match=r"/set/manifest\.json: could not be fetched in 1 attempts \(.*onnect"):
        remote_set(service, tmp_path / "cache", attempts=1)
    assert not caplog.text
    assert capfd.readouterr() == ("", "")


def test_wrong_addresses_and_credentials_are_one_line_at_once(service, tmp_path, monkeypatch, caplog, capfd):
    for address in (f"{service.root}/none", f"{service.scheme}://no-bucket/set"):
        with pytest.raises(UserError, match=rf"{address}/manifest\.json: cannot be read \(no such bucket or file\)"):
            open_dataset(address, cache=tmp_path / "cache")
    wrong = "WRONG+SECRET/0123456789"
    if service.scheme == "gs":
        for status in (400, 401, 403):
            service.proxy.faults["manifest.json"] = [status] * 9
            with pytest.raises(UserError, match=r"manifest\.json: cannot be read \(.*check the address and the cred"):
                open_dataset(f"{service.root}/set", cache=tmp_path / "cache")
    else:
        for changed in ({"AWS_ACCESS_KEY_ID": "AKIAWRONG0123456789"}, {"AWS_SECRET_ACCESS_KEY": wrong}, None):
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                value = service.environment[name] if changed is None else changed.get(name, service.environment[name])
                monkeypatch.setenv(name, value)
                if changed is None:
                    monkeypatch.delenv(name)
            service.forget()
            with pytest.raises(
                UserError, match=r"manifest\.json: cannot be read \(.*check the address and the cred"
            ) as e:
                open_dataset(f"{service.root}/set", cache=tmp_path / "cache")
            assert "\n" not in str(e.value)
            assert wrong not in str(e.value)
            assert service.environment["AWS_SECRET_ACCESS_KEY"] not in str(e.value)
    assert not caplog.text
    assert capfd.readouterr() == ("", "")


def test_a_run_on_remote_shards_writes_no_credential(service, tmp_path):
    """Every file that the run writes and every line that it prints, in success and in failure."""
    path = tiny_file(tmp_path, f"data.source={service.root}/wine", "data.limit=160", "generations=1", of=VECTORS)
    environment = {**service.environment, "GS_SESSION_TOKEN": "gs-token-0123456789"}
    done = command("run", path, "data.mode=streaming", "data.workers=0", **environment)
    assert done.returncode == 0, done.stderr
    missing = command("import", f"{service.root}/none", tmp_path / "none", **environment)
    assert missing.returncode == 2
    assert len(missing.stderr.strip().splitlines()) == 1, missing.stderr
    secrets = [value for name, value in environment.items() if "KEY" in name or "TOKEN" in name]
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 20
    for text in (*written, *(each.encode() for run in (done, missing) for each in (run.stdout, run.stderr))):
        assert not [secret for secret in secrets if secret.encode() in text]


def test_netrc_gives_the_login_of_https_hosts_only_to_them(tmp_path, monkeypatch):
    seen = []

    class Login(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

        def do_GET(self) -> None:
            seen.append((self.headers["Host"].split(":")[0], self.headers["Authorization"]))
            self.send_response(302 if self.path == "/a" else 200)
            self.send_header("Location", f"http://127.0.0.1:{self.headers['Host'].rpartition(':')[2]}/b")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Login) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        (tmp_path / "netrc").write_text("machine localhost login me password pass-word\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert list(transfer.chunks(f"http://localhost:{server.server_address[1]}/a", 5)) == []
        (tmp_path / "netrc").write_text("machine localhost login me\npasword pass-word\n")
        with pytest.raises(transfer.Refused, match=r"netrc cannot be read \(line 2 is wrong\)"):
            list(transfer.chunks(f"http://localhost:{server.server_address[1]}/a", 5))
        server.shutdown()
    assert seen == [("localhost", "Basic bWU6cGFzcy13b3Jk"), ("127.0.0.1", None)]
