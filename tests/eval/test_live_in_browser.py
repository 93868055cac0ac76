"""The live page in a browser while a sweep is at work, until its server ends."""

import re
import signal
import time

import chromium
import forked
import pytest
from loops import tiny_file
from test_page_in_browser import AXE, DESK, PHONE

from entroloop.launcher import sweep

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.FOUND is None, reason=chromium.MISSING)]
GRID = "sweep.grid={selection.strategy: [random, greedy]}"
TEXT = "document.body.innerText"
IMAGES = "[...document.images].map(image => image.src)"


def until(browser, script, wanted, seconds=90):
    """Waits until a text of the page contains `wanted`."""
    end = time.monotonic() + seconds
    while wanted not in (text := browser.evaluate(script)):
        assert time.monotonic() < end, text
        time.sleep(0.1)


def address(served, tmp_path):
    end = time.monotonic() + 60
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/", (tmp_path / "served").read_text())):
        assert served.poll() is None, (tmp_path / "served").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    return found[0]


def accessible(browser):
    browser.evaluate(AXE.read_text())
    found = browser.evaluate("""axe.run().then(result => ({passes: result.passes.map(rule => rule.id),
      violations: result.violations.map(rule => [rule.id, rule.nodes.map(node => node.html.slice(0, 150))])}))""")
    assert found["violations"] == []
    assert {"color-contrast", "image-alt", "region"} <= set(found["passes"])


@pytest.mark.usefixtures("forked_arms")
def test_the_page_grows_with_a_sweep_and_stops_with_the_server(tmp_path):
    config = tiny_file(tmp_path, "name=pair")
    (tmp_path / "runs").mkdir()
    served = forked.entroloop(
        "report",
        tmp_path / "runs/pair",
        "--serve",
        "--port",
        0,
        "--interval",
        1,
        merged=True,
        output=tmp_path / "served",
    )
    with chromium.browser(tmp_path / "profile") as browser:
        browser.open(address(served, tmp_path), DESK)
        until(browser, TEXT, "Waiting for the first run in")
        browser.evaluate("window.same = true")
        sweep.run(config, [GRID, "generations=1"], lambda: False)
        until(browser, TEXT, "2 of 2 runs finished, 12 of 12 phases done")
        until(browser, f"String({IMAGES}.length)", "7")  # real images and samples of both arms, the loss, three curves
        browser.evaluate(f"window.first = {IMAGES}")
        sweep.run(config, [GRID], lambda: False)
        until(browser, TEXT, "2 of 2 runs finished, 22 of 22 phases done")
        until(browser, f"String({IMAGES}.filter(image => !first.includes(image)).length)", "6")  # all but the real ones
        seen = browser.evaluate("""({same: window.same, title: document.title,
          broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
          grid: [...document.querySelectorAll("tbody tr")].map(row =>
            [row.querySelector("th").textContent, ...[...row.querySelectorAll("td")].map(cell =>
              cell.querySelectorAll(".mark.sealed").length)]),
          samples: [...document.querySelectorAll("#samples figcaption")].map(one => one.textContent)})""")
        assert seen == {
            "same": True,  # it never reloaded
            "title": "Live: pair · 2 runs · entroloop",
            "broken": 0,
            "grid": [["greedy", 0, 1, 5, 5], ["random", 0, 1, 5, 5]],
            "samples": ["real", "random, generation 1", "greedy, generation 1"],
        }
        for width in (PHONE, DESK):
            browser.resize(width, 900)
            assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            if AXE.exists():
                accessible(browser)
        assert browser.errors == []
        served.send_signal(signal.SIGINT)
        assert served.result().returncode == 0
        until(browser, "document.querySelector('[role=status]').textContent", "The server has ended")
        count = "performance.getEntriesByType('resource').length"
        asked = browser.evaluate(count)
        time.sleep(2.5)
        assert browser.evaluate(count) == asked
        assert "22 of 22 phases done" in browser.evaluate(TEXT)
