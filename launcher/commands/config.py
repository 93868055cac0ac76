"""`entroloop config [SECTION | RUN]`: the meaning of every key, or the configuration of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def config_command(
    section: Annotated[str | None, typer.Argument(help="A section, a key, or the folder of a run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema for editors.")] = False,
) -> None:
    """Explain every configuration key, or show the configuration of a run."""
    from entroloop.data import yaml12
    from entroloop.data.runfolder import CONFIG, Layout, read_config
    from entroloop.launcher.config import Config
    from entroloop.launcher.keys import find, text

    if schema:
        print(json.dumps(Config.model_json_schema()))
    elif section is not None and (Path(section) / CONFIG).is_file():
        saved = read_config(Layout(Path(section)))
        print(json.dumps(saved) if as_json else yaml12.text_of(saved).rstrip())
    else:
        found = find(Config, section)
        print(json.dumps({k.name: dataclasses.asdict(k) for k in found}) if as_json else text(found))
