"""Compiles the library of the pretended device, and the environment of processes that load it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "guard.cpp"


def _torch() -> Path:
    found = importlib.util.find_spec("torch")  # not imported: that would be too early
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def missing() -> str:
    """The reason why the device cannot be made on this machine; empty where it can."""
    if shutil.which("g++") is None:
        return "no compiler: g++ makes the pretended CUDA device"
    if runpy.run_path(str(_torch() / "version.py"))["cuda"] is not None:
        return "this torch was built for GPUs: the pretended CUDA device needs a build for CPUs"
    return ""


def version() -> str:
    """A digest of the source and of torch's version."""
    return hashlib.sha256(SOURCE.read_bytes() + (_torch() / "version.py").read_bytes()).hexdigest()[:12]


def library(folder: Path) -> Path:
    """Compiles the library into a folder."""
    base = _torch()
    links = [f"-L{base}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{base}/lib"]
    options = ["-std=c++20", "-shared", "-fPIC", f"-I{base}/include"]
    subprocess.run(["g++", *options, SOURCE, "-o", folder / "guard.so", *links], check=True)
    return folder / "guard.so"


def environment(library: Path) -> dict[str, str]:
    """The variables of a process that loads the device by `import pretended`, before torch."""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return {**kept, "PYTHONPATH": path, "ENTROLOOP_PRETENDED": str(library), "OMP_NUM_THREADS": "1"}
