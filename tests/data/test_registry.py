"""Finding things by name: built in, by entry point, and `module:attribute`."""

import re
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from entroloop.data import registry
from entroloop.data.errors import UserError
from entroloop.data.registry import Facts, Registry


@dataclass(frozen=True)
class Shape(Facts):
    corners: int = 0


SHAPES = Registry(
    "shape", "shapes", Shape, {"square": Shape("no.such.module:Square", corners=4), "sum": Shape("math:fsum")}
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `triangles` of the user's own, and an installed package that offers one of its attributes."""
    (tmp_path / "triangles.py").write_text(
        "def flat(): pass\nflat.corners = 3\ndef plain(): pass\nclass Outer:\n    inner = plain\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('no\\nluck')\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    registry.search_also(tmp_path)
    point = EntryPoint("installed", "triangles:flat", "entroloop.shapes")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "entroloop.shapes" else [])
    monkeypatch.setattr(SHAPES, "_loaded", {})
    yield
    sys.modules.pop("triangles", None)


def test_facts_of_built_in_things_import_nothing_and_load_imports_them():
    assert SHAPES.check("square") == "square"
    assert SHAPES.facts("square").corners == 4
    assert SHAPES.load("sum")([1, 2]) == 3


def test_the_users_own_things_and_installed_ones_say_their_facts_in_attributes(module):
    for name in ("triangles:flat", "installed"):
        assert SHAPES.load(name).__name__ == "flat"
        assert SHAPES.facts(name).corners == 3
    assert SHAPES.facts("triangles:plain").corners == 0
    assert SHAPES.load("triangles:Outer.inner").__name__ == "plain"
    assert SHAPES.names == ["square", "sum", "installed"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sqare", "shape 'sqare' does not exist: did you mean square? (your own: module:attribute)"),
        ("instaled", "did you mean installed?"),
        ("hexagon", "shape 'hexagon' does not exist: give one of square, sum, installed"),
        ("triangles:", "does not exist: give module:attribute"),
        (":flat", "does not exist"),
        ("triangles:missing", "shape triangles:missing: triangles has no 'missing'"),
        ("nowhere:flat", "shape nowhere:flat: cannot import nowhere (No module named 'nowhere'): is it beside"),
        ("broken:flat", "shape broken:flat: importing broken raised RuntimeError: no luck"),
    ],
)
def test_wrong_names_are_refused_in_one_line(module, name, line):
    with pytest.raises(UserError, match=re.escape(line)):
        SHAPES.check(name)


def test_a_folder_on_the_import_path_never_hides_another_module(module, tmp_path):
    (tmp_path / "json.py").write_text("")
    assert sys.path[-1] == str(tmp_path)
    registry.search_also(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_options_are_checked_by_the_signature():
    def takes(first, second, *, width=1, depth=2):
        pass

    registry.check_options("network x", takes, ["width"], skip=2)
    registry.check_options("network x", lambda first, **any_: None, ["whatever"], skip=1)
    with pytest.raises(UserError, match=r"option of network x 'widht' does not exist: did you mean width\?"):
        registry.check_options("network x", takes, ["widht"], skip=2)
    with pytest.raises(UserError, match="network x: has no options, 'a' was given"):
        registry.check_options("network x", lambda first: None, ["a"], skip=1)
