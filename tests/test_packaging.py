"""A source archive, and the wheel built from it, hold every file of the rooms and run where there is no clone."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
IMPORT_ALL = """
import entroloop, importlib, pkgutil
for module in pkgutil.walk_packages(entroloop.__path__, "entroloop."):
    print(module.name, importlib.import_module(module.name).__file__)
"""
SMALL = (
    "data.size=48", "data.heldout=64", "data.labelled=0", "data.limit=160", "network.kind=unet",
    "network.channels=[8,8]", "train.kimg=0.2", "train.batch=16", "sample.steps=3", "evaluation.samples=null",
    "evaluation.encoders=[pixel]", "generations=1",
)  # fmt: skip


def rooms():
    """The folder of every room, by package."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["package_dir"].strip().splitlines()
    return {package: ROOT / folder for package, _, folder in (line.partition(" = ") for line in lines)}


def run(*command, cwd, **environment):
    words = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env={**words, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source archive, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    left = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "datasets", "tests")
    shutil.copytree(ROOT, folder / "tree", ignore=left)
    archive = folder / run(sys.executable, "-c", BUILD, folder, cwd=folder / "tree").split()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    shutil.rmtree(folder / "tree")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """An environment with the wheel, and with the libraries of this environment but not with its entroloop."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sdist, cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    borrowed = [path for path in sys.path if path.endswith("-packages")]  # what their own .pth files add is left out
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", folder / "venv", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return packages / "entroloop"


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert cited["version"] == setup["metadata"]["version"]
    assert cited["authors"] == [{"name": "entroloop contributors"}]


@pytest.mark.long
def test_a_source_archive_has_what_a_build_needs(sdist):
    for name in (
        "CITATION.cff",
        "CHANGELOG.md",
        "constraints.txt",
        "docs/README.md",
        "configs/deepspeed/zero2.json",
        "configs/accelerate/ddp.yaml",
        "configs/results/density.py",
    ):
        assert (sdist / name).is_file(), name


@pytest.mark.long
def test_a_wheel_has_every_file_of_the_rooms(installed):
    wanted = {
        Path(*package.split(".")[1:], path.relative_to(folder))
        for package, folder in rooms().items()
        for path in (folder.glob("*.yaml") if folder.name == "configs" else folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert found == wanted


@pytest.mark.long
def test_every_module_of_a_wheel_can_be_imported(installed, tmp_path):
    lines = run(installed.parents[3] / "bin" / "python", "-c", IMPORT_ALL, cwd=tmp_path).splitlines()
    files = dict(line.split(" ", 1) for line in lines if line.startswith("entroloop."))
    assert len(files) == sum(1 for _ in installed.rglob("*.py")) - 1  # the package itself
    assert all(Path(file).is_relative_to(installed) for file in files.values())


@pytest.mark.long
def test_a_wheel_runs_packaged_configurations_in_an_empty_folder(installed, tmp_path):
    program = installed.parents[3] / "bin" / "entroloop"
    run(program, "run", "digits", "name=one", *SMALL, cwd=tmp_path)
    run(program, "demo", "name=demo", *SMALL, "sweep.grid={seed: [0]}", cwd=tmp_path)
    assert "<h2" in (tmp_path / "runs/demo/report.html").read_text()
    assert "#SBATCH" in run(program, "slurm", "script", "digits", cwd=tmp_path)
    assert str(ROOT) not in (tmp_path / "runs/one/config.yaml").read_text()
