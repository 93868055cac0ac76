"""`entroloop config [SECTION | RUN | NAME]`: the meaning of every key, or a run's or packaged configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from entroloop.launcher.commands.common import Json


def config_command(
    section: Annotated[
        str | None, typer.Argument(help="A section, a key, the folder of a run, or a packaged configuration.")
    ] = None,
    as_json: Json = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema for editors.")] = False,
) -> None:
    """Explain every configuration key, or show the configuration of a run or a packaged one."""
    from entroloop.data import yaml12
    from entroloop.data.runfolder import CONFIG, Layout, read_config
    from entroloop.launcher.config import Config, read_yaml
    from entroloop.launcher.keys import find, text
    from entroloop.launcher.packaged import file_of

    if schema:
        print(json.dumps(Config.model_json_schema()))
    elif section is not None and (Path(section) / CONFIG).is_file():
        saved = read_config(Layout(Path(section)))
        print(json.dumps(saved) if as_json else yaml12.text_of(saved).rstrip())
    elif section is not None and (packaged := file_of(section)):
        print(json.dumps(read_yaml(packaged)) if as_json else packaged.read_text(encoding="utf-8").rstrip())
    else:
        found = find(Config, section)
        print(json.dumps({k.name: dataclasses.asdict(k) for k in found}) if as_json else text(found))
