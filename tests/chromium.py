"""Debian's chromium without a window, driven over its debugging pipe: pages, keys, sizes, pictures, paper."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no chromium installed (apt-get install chromium)"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
# A tab stop as a user hears and sees it: its name, and whether it is in view with an outline.
_FOCUSED = """(() => {
  const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
  return {tag: one.tagName, name: one.getAttribute("aria-label") || one.textContent.trim(),
          seen: box.bottom > 0 && box.top < innerHeight && box.right > 0, outline: style.outlineStyle !== "none"};
})()"""


class Browser:
    """One page. `errors` has what the page wrote to the console and what it threw."""

    def __init__(self, reading: int, writing: int) -> None:
        self._in, self._out = os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0)
        self._last = 0
        self._session = ""
        self._events: list[dict[str, Any]] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol and returns its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._last:
            pass
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        raw = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "chromium has ended"
            raw += byte
        found: dict[str, Any] = json.loads(raw)
        if "method" in found:
            self._events.append(found)
            if found["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.errors.append(json.dumps(found["params"])[:500])
        return found

    def open(self, page: Path | str, width: int, height: int = 900) -> None:
        """Opens a file or an address in a window of this size, in CSS pixels."""
        self.resize(width, height)
        self._events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise. An exception in the page is an AssertionError."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def tab(self) -> dict[str, Any]:
        """Presses Tab and returns tag, name, and whether the element with the focus is in view and has an outline."""
        self.press("Tab", 9)
        return dict(self.evaluate(_FOCUSED))

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def paper(self) -> bytes:
        """The page as PDF."""
        found = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(found["data"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A chromium that ends with the block; `profile` is an empty folder for its files."""
    assert FOUND
    ends = [end for pipe in (os.pipe(), os.pipe()) for end in pipe]
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]  # not among 3 and 4, which chromium's become
    for end in ends:
        os.close(end)
    reads, ours, theirs, writes = high
    null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    given = [(os.POSIX_SPAWN_DUP2, reads, 3), (os.POSIX_SPAWN_DUP2, writes, 4), null]
    command = [FOUND, *_FLAGS, f"--user-data-dir={profile}"]
    process = os.posix_spawn(FOUND, command, os.environ, file_actions=given)
    os.close(reads)
    os.close(writes)
    try:
        yield Browser(theirs, ours)
    finally:
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
