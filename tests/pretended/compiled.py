"""Compiles the library of the pretended device, and the environment of processes that load it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "guard.cpp"


def _torch() -> Path:
    found = importlib.util.find_spec("torch")  # not imported: that would be too early
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def version() -> str:
    """A digest of the source and of torch's version."""
    return hashlib.sha256(SOURCE.read_bytes() + (_torch() / "version.py").read_bytes()).hexdigest()[:12]


def library(folder: Path, compiler: str = "g++") -> Path:
    """Compiles the library into a folder. Raises OSError without the compiler."""
    base = _torch()
    links = [f"-L{base}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{base}/lib"]
    options = ["-std=c++20", "-shared", "-fPIC", f"-I{base}/include"]
    subprocess.run([compiler, *options, SOURCE, "-o", folder / "guard.so", *links], check=True)
    return folder / "guard.so"


def environment(library: Path) -> dict[str, str]:
    """The variables of a process that loads the device by `import pretended`, before torch."""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return {**kept, "PYTHONPATH": path, "ENTROLOOP_PRETENDED": str(library), "OMP_NUM_THREADS": "1"}
