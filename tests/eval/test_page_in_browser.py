"""The report in a browser: on a phone, on a desk, on paper, by keyboard alone, and as a screen reader finds it."""

from pathlib import Path

import chromium
import pytest
import report_runs

pytestmark = pytest.mark.skipif(chromium.FOUND is None, reason=chromium.MISSING)

SMALL, PHONE, DESK, PAPER = 320, 390, 1280, 717  # CSS pixels; A4 without the margins that chromium leaves
AXE = Path(__file__).parents[2] / ".venv/npm/node_modules/axe-core/axe.min.js"


@pytest.fixture(scope="module")
def shown(once, tmp_path_factory):
    """A browser, and the page in it at a width that a test chooses."""
    page = once("report", report_runs.make_page) / "report.html"
    with chromium.browser(tmp_path_factory.mktemp("profile")) as browser:

        def at(width):
            browser.open(page, width)
            return browser

        yield at
        assert browser.errors == []


@pytest.mark.parametrize("width", [SMALL, PHONE, DESK])
def test_every_picture_is_drawn_and_the_page_does_not_scroll_sideways(shown, width):
    seen = shown(width).evaluate("""({
      broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length, images: document.images.length,
      dots: document.querySelectorAll("#any .dot").length, wide: document.documentElement.scrollWidth - innerWidth,
      open: document.querySelectorAll("details").forEach(one => one.open = true),
      wide_open: document.documentElement.scrollWidth - innerWidth,
    })""")
    assert seen["broken"] == 0
    assert seen["images"] > 20
    assert seen["dots"] == 8
    assert seen["wide"] <= 0
    assert seen["wide_open"] <= 0


def test_wide_tables_scroll_with_a_hint_and_keep_their_first_column(shown):
    look = """(async () => {
     for (const one of document.querySelectorAll("details")) one.open = true;
     for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
     return [...document.querySelectorAll(".wide")].map(w => {
      w.scrollLeft = 150;
      const left = w.getBoundingClientRect().left, first = w.querySelector("tbody th").getBoundingClientRect();
      return {name: w.getAttribute("aria-label"), over: w.scrollWidth > w.clientWidth, moved: w.scrollLeft,
              hint: getComputedStyle(w, "::before").content.includes("Scroll"),
              kept: Math.abs(first.left - left) < 2, share: first.width / w.clientWidth};
     });
    })()"""
    narrow = shown(PHONE).evaluate(look)
    assert any(one["over"] and one["moved"] > 50 for one in narrow)
    for one in narrow:
        assert one["hint"] == one["over"], one
        assert one["kept"], one
        assert one["share"] < 0.6 or not one["over"], one
    assert [one["name"] for one in shown(DESK).evaluate(look) if one["over"] or one["hint"]] == []


def test_the_keyboard_reaches_everything_in_view_and_with_an_outline(shown):
    browser = shown(DESK)
    wanted = browser.evaluate("""[...document.querySelectorAll("a, summary, select, .wide")]
      .filter(one => one.checkVisibility()).length""")
    stops = [browser.tab()]
    assert stops[0]["name"] == "Skip to the results"
    while len(stops) <= wanted and (stop := browser.tab())["tag"] != "BODY":
        stops.append(stop)
    assert len(stops) == wanted
    assert [stop for stop in stops if not stop["seen"] or not stop["outline"] or not stop["name"]] == []


def test_keys_skip_open_choose_and_scroll(shown):
    browser = shown(PHONE)
    browser.tab()
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("location.hash") == "#main"
    closed = browser.evaluate("document.querySelectorAll('details:not([open])').length")
    browser.evaluate("document.querySelector('details:not([open]) summary').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == closed - 1
    browser.evaluate("document.getElementById('y').focus()")
    before = browser.evaluate("document.getElementById('any-title').textContent")
    browser.press("ArrowDown", 40)
    assert browser.evaluate("document.getElementById('any-title').textContent") != before
    browser.evaluate("document.querySelector('#samples .wide').focus()")
    browser.press("ArrowRight", 39)
    scrolled = """new Promise(done => {
      const one = document.querySelector('#samples .wide');
      const look = () => one.scrollLeft ? done(true) : setTimeout(look, 20);
      setTimeout(() => done(false), 5000); look();
    })"""
    assert browser.evaluate(scrolled)


def test_paper_has_everything_and_cuts_no_table(shown):
    browser = shown(PAPER)
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        seen = browser.evaluate("""(() => {
          dispatchEvent(new Event("beforeprint"));
          const closed = () => document.querySelectorAll("details:not([open])").length;
          const cut = [...document.querySelectorAll(".wide")].filter(w => w.scrollWidth > innerWidth);
          const found = {cut: cut.map(w => w.getAttribute("aria-label")), open: closed()};
          dispatchEvent(new Event("afterprint"));
          return {...found, closed: closed(), nav: document.querySelector("nav").checkVisibility()};
        })()""")
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    assert seen["cut"] == []
    assert seen["open"] == 0
    assert seen["closed"] > 2
    assert not seen["nav"]
    assert browser.paper().startswith(b"%PDF")


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core installed (sh tests/system_packages.sh, which needs npm)")
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_roles_names_and_contrast_are_as_axe_core_wants_them(shown, width):
    browser = shown(width)
    browser.evaluate(AXE.read_text())
    browser.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = browser.evaluate("""axe.run().then(result => ({passes: result.passes.map(rule => rule.id),
      violations: result.violations.map(rule => [rule.id, rule.nodes.map(node => node.html.slice(0, 150))])}))""")
    assert found["violations"] == []
    wanted = {"color-contrast", "image-alt", "region", "td-headers-attr", "select-name"}
    assert wanted | ({"scrollable-region-focusable"} if width == PHONE else set()) <= set(found["passes"])
