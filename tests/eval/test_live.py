"""The live page: what it shows of runs at work, that it only reads, and whom its server answers."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import report_runs
from typer.testing import CliRunner

from entroloop.data.errors import UserError
from entroloop.data.progress import Progress
from entroloop.data.runfolder import Layout, Step
from entroloop.eval.report import figures
from entroloop.eval.report import serve as server_module
from entroloop.eval.report.live import PARTS, Live
from entroloop.eval.report.serve import Server
from entroloop.launcher import __main__ as program
from entroloop.launcher.run.lease import Lease
from entroloop.launcher.status import states

program._register()


def make(folder):
    return report_runs.make_run(folder / "sweep" / "greedy", "greedy", generations=2, n=20, planned=3)


@pytest.fixture(scope="module")
def kept(once):
    """A run that is only read."""
    return once("live", make) / "sweep" / "greedy"


@pytest.fixture
def run(kept, tmp_path):
    return Path(shutil.copytree(kept.parent, tmp_path / "sweep")) / "greedy"


@pytest.fixture(scope="module")
def ask(kept, serve):
    """Sends requests to one server."""
    return serve(live(kept.parent, every=60.0))


@pytest.fixture(scope="module")
def serve():
    """`serve(live, host)`: a server on a free port, and a function that sends it requests."""
    servers = []

    def start(live, host="127.0.0.1"):
        server = Server(live, host, 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

        def ask(path="/state", method="GET", **headers):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return SimpleNamespace(status=answer.status, headers=answer.headers, text=answer.read().decode())

        ask.address = server.server_address  # type: ignore[attr-defined]
        return ask

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def live(folder, every=0.0):
    return Live([folder], states, every)


def cells(html):
    """What a screen reader says of each cell of the grid, row by row."""
    rows = re.findall(r"<tr>.*?</tr>", html.partition("<tbody>")[2], flags=re.DOTALL)
    return [re.findall(r'<span class="sr">(.*?)</span>', row) for row in rows]


def test_the_grid_shows_the_phases_of_each_run_and_generation(run):
    page, layout = live(run.parent), Layout(run)
    with Lease(layout.lease(Step(2, "train")), "training") as held:
        held.progress = Progress("training", 200, "img", done=80, show=False)
        held.progress.tell(loss=0.25)
        held._write()
        part = page.parts()["phases"].html
    begun = "select done, train to do, sample done, encode to do, evaluate done"
    assert cells(part) == [
        ["to do", begun, begun, "select to do, train 40 %, sample to do, encode to do, evaluate to do"]
    ]
    assert 'class="mark running" title="train" style="--part: 40%"' in part
    assert "0 of 1 runs finished, 6 of 16 phases done" in part
    assert "generation 2, train: loss 0.25" in part
    assert "last loss 1.25 (generation 1, 4.0 kimg)" in part


@pytest.mark.slow
def test_only_what_has_changed_is_drawn_again(run, monkeypatch):
    page = live(run.parent)
    before = page.parts()
    draw, drawn = figures.main_figures, []

    def counted(runs):
        drawn.append("curves")
        return draw(runs)

    monkeypatch.setattr(figures, "main_figures", counted)
    assert page.parts() == before
    with (run / "generation_0001" / "stats.jsonl").open("a") as stats:
        stats.write(json.dumps({"phase": "train", "kimg": 8, "loss": 0.75}) + "\n")
    after = page.parts()
    assert {name for name in PARTS if after[name].tag != before[name].tag} == {"phases", "loss"}
    assert drawn == []
    twin = report_runs.make_run(run.parent / "random", generations=3, n=20)
    again = page.parts()
    assert {name for name in PARTS if again[name].tag != after[name].tag} == {"phases", "samples", "loss", "curves"}
    assert drawn == ["curves"]
    assert "greedy, generation 1" in again["samples"].html
    assert "random, generation 2" in again["samples"].html
    (twin / "generation_0000" / "metrics" / "metrics.jsonl").write_text("{")
    broken = page.parts()
    assert "metrics.jsonl: damaged row" in broken["problem"].html
    assert broken["curves"] == again["curves"]


def test_a_folder_is_waited_for(tmp_path):
    page = live(tmp_path / "later")
    assert "Waiting for the first run in" in page.page()
    report_runs.make_run(tmp_path / "later" / "one", generations=1, n=20)
    assert cells(page.parts()["phases"].html)
    assert page.title == "Live: one · entroloop"


def test_what_a_browser_gets(run, serve):
    page = live(run.parent, every=60.0)
    ask = serve(page)
    whole = ask("/")
    assert whole.status == 200
    assert not re.search(r'(src|href)="(https?:|//)', whole.text)
    assert "script-src 'self'" in whole.headers["Content-Security-Policy"]
    assert ask("/live.js").headers["Content-Type"].startswith("text/javascript")
    state = ask("/state")
    for name, tag in json.loads(state.text)["parts"].items():
        part = ask(f"/part/{name}")
        assert (part.status, part.headers["ETag"]) == (200, f'"{tag}"')
        assert part.text in whole.text
        assert f'data-tag="{tag}"' in whole.text
    known = ask("/state", If_None_Match=state.headers["ETag"])
    assert (known.status, known.text) == (304, "")
    assert (ask("/state", "HEAD").status, ask("/state", "HEAD").text) == (200, "")


@pytest.mark.parametrize(
    "path",
    ["/live.css", "/part/none", "/part/", "/config.yaml", "/../page.py", "/part/../live.js", "//etc/passwd", "x"],
)
def test_no_file_is_served(ask, path):
    assert ask(path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_request_changes_nothing(ask, method):
    refused = ask("/", method)
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost:1234", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("10.1.2.3:80", 200),
        (socket.gethostname(), 200),
        ("evil.example", 421), ("evil.example:8642", 421), ("127.0.0.1.evil.example", 421), ("", 421),
    ],
)  # fmt: skip
def test_a_foreign_name_is_not_answered(ask, name, status):
    """A page elsewhere may let its own name resolve to this machine."""
    assert ask("/state", Host=name).status == status


@pytest.mark.parametrize("sent", [b"", b"GET /state HT", b"GET /state HTTP/1.0\r\nHost: 127.0.0.1\r\nX: "])
def test_clients_that_never_finish_are_cut_off_and_keep_nobody_out(run, serve, monkeypatch, sent):
    monkeypatch.setattr(server_module, "SECONDS", 0.2)
    monkeypatch.setattr(server_module, "AT_ONCE", 2)
    ask, before = serve(live(run.parent, every=60.0)), threading.active_count()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(ask.address)) for _ in range(5)]
        for client in slow:
            client.sendall(sent)
        assert ask().status == 200
        assert threading.active_count() <= before + 2
        assert [client.recv(100) for client in slow] == [b""] * 5


def test_a_client_that_sends_byte_by_byte_has_no_more_time(run, serve, monkeypatch):
    monkeypatch.setattr(server_module, "SECONDS", 0.3)
    ask = serve(live(run.parent, every=60.0))
    with socket.create_connection(ask.address) as client:

        def drip():
            for _ in range(100):
                client.sendall(b"G")
                time.sleep(0.1)

        with pytest.raises(ConnectionError):
            drip()


def test_serving_writes_nothing(run, serve):
    def everything():
        return {path: path.read_bytes() if path.is_file() else None for path in run.parent.rglob("*")}

    before = everything()
    ask = serve(live(run.parent))
    assert ask("/").status == ask("/state").status == ask("/part/samples").status == 200
    assert everything() == before


@pytest.mark.parametrize("words", [["--out", "x"], ["--watch"], ["--format", "csv"]])
def test_options_that_write_are_refused(run, words):
    refused = CliRunner().invoke(program.app, ["report", str(run), "--serve", *words])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception).startswith("--serve: ")


@pytest.mark.parametrize("folder", ["nowhere/sweep", "file"])
def test_a_folder_that_cannot_appear_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("")
    refused = CliRunner().invoke(program.app, ["report", str(tmp_path / folder), "--serve", "--port", "0"])
    assert isinstance(refused.exception, UserError)


@pytest.mark.parametrize(("host", "words"), [("127.0.0.1", "address already in use"), ("no.such.host.invalid", "name")])
def test_an_address_that_cannot_be_had_is_one_line(run, host, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--host {host} --port {port}: .*{words}.*--port 0"):
            Server(live(run), host, port)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_no_page_reloads_after_watching_has_been_stopped(run, tmp_path, monkeypatch, how):
    out = tmp_path / "report.html"

    def stop(seconds):
        assert '<meta http-equiv="refresh" content="15">' in out.read_text()
        signal.raise_signal(how)

    monkeypatch.setattr("time.sleep", stop)
    before = signal.getsignal(signal.SIGTERM)
    stopped = CliRunner().invoke(program.app, ["report", str(run), "--watch", "--out", str(out)])
    assert stopped.exit_code != 0
    assert "http-equiv" not in out.read_text()
    assert "<h2" in out.read_text()
    assert signal.getsignal(signal.SIGTERM) is before
