"""Every configuration key with its type, default, bounds and meaning.

sections of the rooms (pydantic models)  ->  Key per field  ->  text, JSON, or a page of the docs
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from entroloop.data.config import HOW
from entroloop.data.errors import UserError
from entroloop.data.registry import hint

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Key:
    """One configuration key.

    name     dotted: `train.lr`
    type     in words: `integer`, `number or null`, or the choices: `edm | ddpm`
    default  as written in YAML; None where the key is required
    bounds   in words: `> 0, <= 1`; empty where there are none
    decides  whether the key decides the sealed bytes; other keys may change when a run is resumed
    meaning  one or more sentences
    """

    name: str
    type: str
    default: str | None
    bounds: str
    decides: bool
    meaning: str


def keys(model: type[BaseModel], prefix: str = "", decides: bool = True) -> Iterator[Key]:
    """Every key of a section in the section's order, then the keys of its nested sections."""
    schema = model.model_json_schema()
    nested = {}
    for name, field in model.model_fields.items():
        decides_here = decides and HOW not in field.metadata
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            nested[name] = (inner, decides_here)
            continue
        about = schema["properties"][name]
        default = None if field.is_required() else _yaml(about.get("default", field.default))
        meaning = " ".join((field.description or "").split())
        bounds = ", ".join(dict.fromkeys(_bounds(about)))
        yield Key(f"{prefix}{name}", _type(about, schema.get("$defs", {})), default, bounds, decides_here, meaning)
    for name, (inner, decides_here) in nested.items():
        yield from keys(inner, f"{prefix}{name}.", decides_here)


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, default=str)


def _bounds(about: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{sign} {about[word]:g}" for word, sign in BOUNDS.items() if word in about)
    for inner in about.get("anyOf", ()):
        yield from _bounds(inner)


def _type(about: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Describes a JSON schema in words."""
    if "$ref" in about:
        return _type(definitions[about["$ref"].rpartition("/")[2]], definitions)
    if "enum" in about:
        return " | ".join(map(str, about["enum"]))
    if "const" in about:
        return str(about["const"])
    if "examples" in about:  # a key of the kind `Named`
        return " | ".join(about["examples"])
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_type(inner, definitions) for inner in about["anyOf"]))
    match about.get("type"):
        case "array" if "prefixItems" in about:
            return f"list of {len(about['prefixItems'])}: {_type(about['prefixItems'][0], definitions)}"
        case "array":
            return f"list of {_type(about.get('items', {}), definitions)}"
        case "object" if isinstance(about.get("additionalProperties"), Mapping):
            return f"mapping to {_type(about['additionalProperties'], definitions)}"
        case "object":
            return "mapping"
        case None:
            return "any"
    return str({"string": "text", "null": "null"}.get(about["type"], about["type"]))


def find(model: type[BaseModel], section: str | None) -> list[Key]:
    """Keys of the named section, the named key, or all keys without a name. Raises UserError for an unknown name."""
    every = list(keys(model))
    if section is None:
        return every
    found = [key for key in every if key.name == section or key.name.startswith(f"{section}.")]
    if not found:
        names = {key.name for key in every} | {key.name.rpartition(".")[0] for key in every if "." in key.name}
        near = hint(section, sorted(names), listed=dict.fromkeys(key.name.partition(".")[0] for key in every))
        raise UserError(f"{section}: no section, key, run or packaged configuration of that name: {near}")
    return found


def text(found: list[Key]) -> str:
    """Text for a terminal: each key with its type and default on one line, and its meaning below."""
    lines = []
    for key in found:
        default = "" if key.default is None else f" = {key.default}"
        facts = ", ".join(filter(None, [key.type, key.bounds, "" if key.decides else "may change on resume"]))
        lines.append(f"{key.name}{default}  ({facts}{', required' if key.default is None else ''})")
        lines.append(textwrap.fill(key.meaning, 110, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)


def page(model: type[BaseModel]) -> str:
    """The text of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "`make docs` generates this page from the code. `entroloop config [SECTION]` prints the same, and",
        "`entroloop config --schema` prints a JSON schema, with which editors complete configuration files.",
        "",
        "The value of a key is the one on the command line (`section.key=value`), otherwise the one in the YAML file,",
        "otherwise the default. Keys marked *how* change how something is computed or shown, but never the sealed",
        "results. They may change when a run is resumed. Any other key may change only while no sealed folder depends",
        "on it.",
        "",
        "## How values are read and checked",
        "",
        "- Files and values on the command line are YAML 1.2: `010` is ten, `1:30` is text, `1e-4` is a number,",
        "  and only `true` and `false` are truth values. No key may be given twice, and no number may be",
        "  infinite.",
        "- `~`, `~user`, `$NAME` and `${NAME}` in the paths `folder`, `modules`, `data.source`, `sample.guide`",
        "  and `tracking.folder` are expanded where the path is used. The configuration that a run saves keeps the",
        "  text as you wrote it. A variable that is not set, or is empty, is refused.",
        "- A key is refused if it differs from its default but has no effect under the other keys, for example",
        "  `sample.sigma_max` with `train.objective=ddpm`, or `data.limit` with a sealed set as the source. In a",
        "  sweep over the other key, give both keys in one mapping of `sweep.grid`. Keys marked *how* are never",
        "  refused for this reason.",
        "- A run checks all of the following before it begins: the real data and their number, everything that",
        "  the configuration names, your own encoders, network, objective and sampler on two samples, weights",
        "  files, a guide's network, `threads` against the cores of the machine, the folder and the space on its",
        "  disk. `run --dry-run` makes the same checks. If only the machine lacks something, the dry run prints",
        "  its forecast first. `slurm submit` and `slurm script` do not check this machine, because the run will",
        "  use another one.",
    ]
    section = None
    for key in keys(model):
        here = key.name.rpartition(".")[0]
        if here != section:
            section = here
            lines += ["", f"## {here or 'At the top level'}", ""]
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        type_ = ", ".join(filter(None, [key.type, key.bounds])).replace("|", "\\|")
        default = "required" if key.default is None else f"`{key.default}`"
        how = "" if key.decides else " *(how)*"
        lines.append(f"| `{key.name}` | {type_} | {default} | {key.meaning.replace('|', chr(92) + '|')}{how} |")
    return "\n".join(lines) + "\n"
