"""YAML 1.2 as plain values: a file means what it says, and no key is given twice.

    text  ->  read  ->  mappings, lists, texts, numbers, true, false, null

PyYAML reads YAML 1.1, where `010` is 8, `1:30` is 90, `1e-4` is a text and `no` is false. Scalars here follow the core
schema of YAML 1.2.2 (section 10.3.2). Merge keys (`<<`) work as in YAML 1.1. Files that `yaml.safe_dump` writes read
back as the same values.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from entroloop.data.errors import UserError

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class NotYamlError(UserError):
    """A text that is not YAML."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises UserError, with both lines, for a key that is given twice, and for a key that is not text."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                shown = f" {key.value}" if isinstance(key, yaml.ScalarNode) else ""
                raise UserError(f"{line}: the key{shown} is not text: write it in quotes")
            if key.value in first:
                raise UserError(f"{line}: {key.value} is given twice, first in line {first[key.value]}: give it once")
            first[key.value] = line
        return super().construct_mapping(node, deep)

    def _integer(self, node: yaml.ScalarNode) -> int:
        text: str = node.value
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Quotes texts that either version of YAML would read as something else."""


for _tag, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._integer)


def read(text: str, where: str) -> Any:
    """The value of a YAML text.

    where  the file or key that holds the text, for messages

    Raises UserError, with the line, when the text is not YAML, gives a key twice, or holds itself by an alias.
    """
    try:
        value = yaml.load(text, _Loader)
        _check_depth(value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        raise NotYamlError(f"{where}{at}: not YAML ({getattr(error, 'problem', None) or error})") from error
    except UserError as error:
        raise UserError(f"{where}:{error}") from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise UserError(f"{where}: nested too deeply, or a number too long, for a configuration") from error
    return value


def _check_depth(value: Any) -> None:
    """Raises RecursionError for a value that holds itself."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner)


def text_of(value: Any) -> str:
    """The YAML text of plain values, which `read` and readers of YAML 1.1 read back as the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
