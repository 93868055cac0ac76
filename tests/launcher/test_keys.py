"""`entroloop config` and the pages made from the code: every key is explained, and the pages agree with the code."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from present import present

from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError
from entroloop.launcher import __main__ as program
from entroloop.launcher.config import Config
from entroloop.launcher.explain import known_keys
from entroloop.launcher.keys import find, keys
from entroloop.selection.catalogue import DISTANCES, STRATEGIES
from entroloop.trainer.catalogue import NETWORKS, OBJECTIVES, SAMPLERS, TRACKERS

ROOT = next(folder for folder in Path(__file__).parents if (folder / "setup.cfg").exists())


def test_every_key_of_a_configuration_is_explained():
    found = {key.name: key for key in keys(Config)}
    every = set(known_keys(Config))
    sections = {name for name in every if any(other.startswith(f"{name}.") for other in every)}
    assert set(found) == every - sections
    assert not [key.name for key in found.values() if not key.meaning.endswith(".")]


def test_a_key_shows_its_type_default_bounds_and_part_in_recipes():
    (lr,) = find(Config, "train.lr")
    assert (lr.type, lr.default, lr.bounds, lr.decides) == ("number", "0.001", "> 0", True)
    (engine,) = find(Config, "train.engine")
    assert "zero2" in engine.type.split(" | ")
    assert not engine.decides
    assert find(Config, "data.source")[0].default is None
    assert not any(key.decides for key in find(Config, "slurm"))
    assert {key.name for key in find(Config, "train.ema")} < {key.name for key in find(Config, "train")}


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("selection.strategy", STRATEGIES),
        ("selection.metric", DISTANCES),
        ("selection.encoder", ENCODERS),
        ("evaluation.encoders", ENCODERS),
        ("sample.sampler", SAMPLERS),
        ("train.objective", OBJECTIVES),
        ("network.kind", NETWORKS),
        ("tracking.trackers", TRACKERS),
    ],
)
def test_a_key_that_is_a_name_lists_every_built_in_name(key, registry):
    (found,) = find(Config, key)
    names = found.type.removeprefix("list of ").removeprefix("auto | ").split(" | ")
    assert names == [*registry.built_in, "module:attribute"]


def test_an_unknown_section_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"^trian: .*train"):
        find(Config, "trian")
    with pytest.raises(UserError, match=r"give one of .*, seed, .*, train, ") as refused:
        find(Config, "runs/frist")
    assert "train.lr" not in str(refused.value)


def config(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        program.main(["config", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_command_prints_text_json_a_schema_and_the_configuration_of_a_run(capsys, tmp_path):
    assert "train.lr = 0.001  (number, > 0)" in config(capsys, "train")
    assert json.loads(config(capsys, "train.lr", "--json"))["train.lr"]["bounds"] == "> 0"
    schema = json.loads(config(capsys, "--schema"))
    assert schema["$defs"]["TrainConfig"]["properties"]["lr"]["description"].startswith("Learning rate")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"format": 1, "name": "mine", "generations": 2}))
    assert yaml.safe_load(config(capsys, str(tmp_path))) == {"format": 1, "name": "mine", "generations": 2}


def test_generated_pages_are_what_make_docs_would_write():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(present(spec))
    present(present(spec).loader).exec_module(generate)
    for path, text in generate.pages().items():
        assert path.read_text() == text, f"{path.name} is not up to date: run `make docs`"
