"""YAML 1.2: scalars of the core schema, keys once, and texts that read back as they were."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from entroloop.data.errors import UserError
from entroloop.data.yaml12 import read, text_of


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("010", 10), ("-07", -7), ("0o10", 8), ("0x1F", 31), ("1:30", "1:30"), ("12:00:00", "12:00:00"),
        ("1e-4", 1e-4), ("1E3", 1000.0), ("-.5", -0.5), ("5.", 5.0), (".inf", math.inf), ("1_000", "1_000"),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("y", "y"), ("True", True), ("false", False), ("~", None),
        ("", None), ("2020-01-01", "2020-01-01"), ("'010'", "010"), ("=", "="),
    ],
)  # fmt: skip
def test_a_scalar_means_what_yaml_1_2_says(written, meant):
    found = read(f"a: {written}", "f")["a"]
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: a is given twice, first in line 1"),
        ("a: {b: 1,\n b: 2}", "f:2: b is given twice, first in line 1"),
        ("a:\n - {c: 1}\n - {c: 1, 'c': 2}", "f:3: c is given twice, first in line 3"),
        ("1: 2", "f:1: the key 1 is not text"),
        ("[a]: 2", "f:1: the key is not text"),
        ("a: &x [*x]", "f: nested too deeply"),
        ("a: " + "[" * 5000, "f: nested too deeply"),
        ("a: " + "9" * 5000, "a number too long"),
        ("a: !!python/name:os.system", "f:1: not YAML"),
        ("a: 1\n---\nb: 2", "f:2: not YAML"),
        ("a: \x00", "f: not YAML"),
    ],
)
def test_what_is_not_clear_is_refused_with_its_line(text, line):
    with pytest.raises(UserError) as caught:
        read(text, "f")
    assert line in str(caught.value)


def test_a_merged_key_may_be_given_again():
    assert read("x: &d {a: 1, b: 2}\ny: {<<: *d, a: 3}", "f")["y"] == {"a": 3, "b": 2}


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8")),
    st.from_regex(r"\A[-+.0-9:_eoxXyYnN~=<]{1,8}\Z"),
)  # fmt: skip


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_what_is_written_reads_back_the_same_in_both_versions(value):
    text = text_of({"a": value})
    assert read(text, "f") == {"a": value}
    assert yaml.safe_load(text) == {"a": value}
