"""`entroloop config [SECTION | RUN]`: what every key means, or the configuration of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def config_command(
    section: Annotated[str | None, typer.Argument(help="A section, a key, or the folder of a run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: facts by key.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema for editors.")] = False,
) -> None:
    """Explain every configuration key, or show the configuration of a run."""
    from entroloop.launcher.config import Config
    from entroloop.launcher.keys import find, text

    if schema:
        print(json.dumps(Config.model_json_schema()))
    elif section is not None and (Path(section) / "config.yaml").is_file():
        saved = (Path(section) / "config.yaml").read_text()
        if as_json:
            import yaml

            saved = json.dumps(yaml.safe_load(saved))
        print(saved.rstrip())
    else:
        found = find(Config, section)
        print(json.dumps({k.name: dataclasses.asdict(k) for k in found}) if as_json else text(found))
