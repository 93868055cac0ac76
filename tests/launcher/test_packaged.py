from __future__ import annotations

from pathlib import Path

import pytest
from loops import command, tiny_file

from entroloop.data.errors import UserError
from entroloop.launcher import packaged
from entroloop.launcher.commands import demo
from entroloop.launcher.config import Config, load

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_name_is_the_configuration_of_that_file(path):
    assert load(Path(path.stem)) == load(path)
    assert path.stem not in Config.model_fields  # `entroloop config NAME` would be ambiguous


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_for_one_gpu_is_compiled_and_one_that_runs_on_a_cpu_is_not(path):
    config = load(path)
    if config.train.precision == "no":
        assert not config.train.compile
    elif config.slurm.nodes * config.slurm.gpus_per_node == 1:
        assert config.train.compile
        assert config.train.precision == "fp16"  # refused on a CPU


def test_an_existing_file_wins_and_a_folder_does_not(tmp_path):
    Path("mixture").mkdir()
    assert load(Path("mixture")).name == "mixture"
    tiny_file(tmp_path).rename("digits")
    assert load(Path("digits")).name == "tiny"


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"^digit: no such configuration file.*cifar10, .*digits, .*mixture"):
        load(Path("digit"))


def test_a_packaged_configuration_finds_own_code_in_the_current_folder(tmp_path):
    Path("own_rules.py").write_text("def first(problem):\n    return range(problem.size)\n")
    config = load(Path("digits"), ["selection.strategy=own_rules:first"])
    assert config.modules == str(tmp_path)
    assert config.run_folder == Path("runs/digits")


def test_config_prints_the_file():
    assert command("config", "digits").stdout == (CONFIGS / "digits.yaml").read_text()


def test_the_demo_is_the_sweep_of_its_packaged_configuration(tmp_path, monkeypatch):
    tiny_file(tmp_path).rename(packaged.DEMO)  # a file of that name is not the demo
    calls = []
    monkeypatch.setattr(demo, "sweep_command", lambda *given: calls.append(given))
    demo.demo_command(["generations=1"])
    ((path, overrides),) = calls
    assert (path, overrides) == (CONFIGS / f"{packaged.DEMO}.yaml", ["generations=1"])
    assert load(path).sweep.grid
