"""The shape of the project: packages, directions of import, and pure files."""

import ast
import configparser
import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import entroloop
from entroloop.data.store.shards import Provenance, seal_dataset, write_shard
from entroloop.selection.catalogue import STRATEGIES

ROOT = Path(__file__).parent.parent
ROOMS = ("data", "trainer", "selection", "eval", "launcher", "slurm")
ALLOWED = {
    "data": {"data"},
    "trainer": {"data", "trainer"},
    "selection": {"data", "selection"},
    "slurm": {"data", "slurm"},
    "eval": {"data", "selection", "eval"},
    "launcher": set(ROOMS),
}
# What the files of a folder, or of a room outside its subfolders, do not import: prefixes of module names.
APART = {
    "data/store": ("data.sources", "data.streams", "data.features"),
    "data/sources": ("data.streams", "data.features"),
    "data/streams": ("data.sources", "data.features"),
    "data/features": ("data.sources", "data.streams"),
    "selection/exact": ("selection.rules", "selection.choose", "selection.pool", "selection.training_set"),
    "selection/rules": ("selection.choose", "selection.training_set"),
    "eval/measures": ("eval.report", "eval.compare"),
    "launcher/run": ("launcher.commands", "launcher.sweep", "launcher.jobs", "launcher.submit", "launcher.status"),
    "launcher/preview": ("launcher.commands",),
}
PURE = [
    "data/seeds.py",
    "data/split.py",
    "data/streams/order.py",
    "data/streams/noise.py",
    "selection/pool.py",
    "trainer/diffusion.py",
    "trainer/sampler.py",
    "trainer/ema.py",
    "selection/exact/topk.py",
    "eval/measures/frechet.py",
    "eval/measures/manifold.py",
    "eval/measures/diversity.py",
    "eval/measures/memorization.py",
]


def imports(path):
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room):
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            if name.startswith("entroloop."):
                assert name.split(".")[1] in ALLOWED[room], f"{path} imports {name}"


@pytest.mark.parametrize("folder", APART)
def test_subfolders_are_held_apart(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            known = name.removeprefix("entroloop.")
            assert not any(f"{known}.".startswith(f"{other}.") for other in APART[folder]), f"{path} imports {name}"


def test_only_the_program_knows_its_commands():
    for path in (ROOT / "launcher").rglob("*.py"):
        if path.parent.name != "commands" and path != ROOT / "launcher/__main__.py":
            assert not any(name.startswith("entroloop.launcher.commands") for name in imports(path)), path


@pytest.mark.parametrize("name", PURE)
def test_pure_files_know_no_world_and_no_path(name):
    found = set(imports(ROOT / name))
    assert not {n for n in found if n.startswith(("pathlib", "os", "torch.distributed", "entroloop.data.world"))}


def test_only_world_calls_torch_distributed_and_only_engines_import_accelerate():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            found = set(imports(path))
            if path != ROOT / "data/world.py":
                assert not any(n.startswith("torch.distributed") for n in found), path
            if path.parent != ROOT / "trainer/engines":
                assert not any(n.split(".")[0] in ("accelerate", "deepspeed") for n in found), path


def test_setup_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    tree = {
        ".".join(["entroloop", *path.parent.relative_to(ROOT).parts])
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert listed == tree | {"entroloop", "entroloop.configs"}
    assert not (ROOT / "__init__.py").exists()


def test_importing_entroloop_imports_no_room_and_names_them_all():
    """In a process of its own, since this one has imported everything."""
    code = (
        "import sys, entroloop; before = set(sys.modules);"
        "assert not any(m.startswith('entroloop.') or m in ('torch', 'numpy', 'typer') for m in before);"
        "assert entroloop.__version__; assert entroloop.slurm.__name__ == 'entroloop.slurm'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {*ROOMS} < {*entroloop.__all__}
    assert all(hasattr(entroloop, name) for name in entroloop.__all__)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/catalogue.py")), ids=lambda path: path.parent.name)
def test_catalogues_import_nothing_that_is_slow(path):
    allowed = ("__future__", "collections", "dataclasses", "typing", "annotated_types", "entroloop.data.registry")
    assert not [name for name in imports(path) if not name.startswith(allowed)]


SLOW = ("torch", "diffusers", "sympy", "scipy", "sklearn", "matplotlib", "accelerate", "torchmetrics")
WATCH = """
import json, sys
from typer.testing import CliRunner
from entroloop.launcher import __main__ as program

program._register()
for command, slow in json.loads(sys.argv[1]):
    done = CliRunner().invoke(program.app, command)
    absent = "no such file or folder" in str(done.exception)  # the dry run ends with this after its forecast
    assert done.exit_code == 0 or absent, (command, done)
    found = {*slow} & {*sys.modules}
    assert not found, (command, found)
"""


def sealed_images(folder):
    where = Provenance(np.full(48, -1), np.arange(48), ("",) * 48)
    write_shard(folder, 0, np.zeros((48, 3, 32, 32), np.uint8), np.arange(48) % 2, where, first_key=0)
    seal_dataset(folder)
    return folder


@pytest.mark.slow
def test_commands_that_only_read_import_nothing_that_is_slow(tmp_path):
    """In a process of its own, since this one has imported everything. Things of the user's own may be slow."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{format: 1, generations: 1}")
    configs = sorted((ROOT / "configs").glob("*.yaml"))
    commands = [["--help"], ["status", f"{tmp_path}/run"], ["config"]]
    commands += [["slurm", "script", f"{path}", "slurm.setup=[true_env]"] for path in configs]
    commands += [["run", "--dry-run", f"{path}"] for path in configs if path.stem not in ("digits", "demo")]
    source = sealed_images(tmp_path / "set")
    with_set = ["run", "--dry-run", f"{ROOT}/configs/cifar10-edm.yaml", f"data.source={source}", "train.labels=true"]
    with_set += ["data.size=16", "data.heldout=16", "data.labelled=0", "evaluation.encoders=[pixel]"]
    for name in STRATEGIES.built_in:
        parameters = inspect.signature(STRATEGIES.load(name)).parameters.values()
        options = {"trim": 0.1} | {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        selection = {"strategy": name, "encoder": "pixel", "options": options}
        commands.append([*with_set, f"selection={json.dumps(selection)}"])
    watched: list[tuple[list[str], Sequence[str]]] = [(command, SLOW) for command in commands]
    others = [name for name in SLOW if name not in ("sklearn", "scipy")]  # scikit-learn contains the digits
    watched.append((["run", "--dry-run", f"{ROOT}/configs/digits.yaml"], others))
    subprocess.run([sys.executable, "-c", WATCH, json.dumps(watched)], check=True, cwd=tmp_path)
