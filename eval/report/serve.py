"""The server of the live page: answers GET and HEAD for the page, its script and its parts, and nothing else.

It names no file of the disk, and refuses requests that a foreign page sends to it by a name of its own (DNS rebinding).
A client that sends its request or takes its answer too slowly is cut off, and a bounded number is served at a time.
"""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from entroloop.data.errors import UserError
from entroloop.eval.report.live import Live, Part

SECONDS = 10.0  # for the whole request, and again for the whole answer
AT_ONCE = 32  # requests; others wait until one of these has been answered or cut off
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Server(ThreadingHTTPServer):
    """Serves `live` on `host` and `port`; port 0 takes a free one. Raises UserError when it cannot be used."""

    daemon_threads = True

    def __init__(self, live: Live, host: str, port: int) -> None:
        self.live = live
        self._places = threading.BoundedSemaphore(AT_ONCE)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(f"--host {host} --port {port}: {why}: give another, or --port 0 for a free port") from error
        self.names = {name.lower() for name in ("localhost", host, socket.gethostname(), self.server_name)}

    @property
    def url(self) -> str:
        host, port = map(str, self.server_address[:2])
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing when a browser has left before its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Request(io.RawIOBase):
    """The bytes of a request, which raise TimeoutError when the time for all of them is over."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._end = connection, time.monotonic() + SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "entroloop", ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Request(self.connection))

    def do_GET(self) -> None:
        if not self._knows_host():
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"another host name is served here\n", "text/plain")
            return
        path = self.path.partition("?")[0]
        live = self.server.live
        if path == "/":
            self._answer(HTTPStatus.OK, live.page().encode(), "text/html")
        elif path == "/live.js":
            self._answer(HTTPStatus.OK, Path(__file__).with_name("live.js").read_bytes(), "text/javascript")
        elif path == "/state":
            state = {"parts": {name: part.tag for name, part in live.parts().items()}, "title": live.title}
            text = json.dumps(state)
            self._answer(HTTPStatus.OK, text.encode(), "application/json", Part(text).tag)
        elif (part := live.parts().get(path.removeprefix("/part/"))) and path.startswith("/part/"):
            self._answer(HTTPStatus.OK, part.html.encode(), "text/html", part.tag)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")

    do_HEAD = do_GET  # noqa: N815

    def _refused(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", "text/plain", allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refused  # noqa: N815

    def _knows_host(self) -> bool:
        """Whether the request names this machine. A name of a foreign page that resolves to it is no address."""
        name = self.headers.get("Host", "").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.server.names
        return True

    def _answer(self, status: HTTPStatus, body: bytes, kind: str, tag: str = "", *, allow: str = "") -> None:
        """Sends headers and, except for HEAD, the body; only headers to a browser that has `tag` already."""
        self.connection.settimeout(SECONDS)
        known = bool(tag) and self.headers.get("If-None-Match") == f'"{tag}"'
        self.send_response(HTTPStatus.NOT_MODIFIED if known else status)
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        headers |= {"ETag": f'"{tag}"'} if tag else {}
        headers |= {"Allow": allow} if allow else {}
        if not known:
            headers |= {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and not known:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: one line per poll would hide everything else on the terminal."""
