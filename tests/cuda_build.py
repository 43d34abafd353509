"""`_cuda` as `pip install` builds it with FASTLSTM_CUDA=ON: minutes of work, beside the tests that come before."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("cmake", "ninja", "g++", "c++filt")


def tool(name: str) -> str | None:
    """In this interpreter's environment, active or not, or on the PATH."""
    return shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


def load_resources() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_resources", ROOT / "bench" / "cuda_resources.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


resources = load_resources()


def why_not() -> str:
    """Why nothing can be built here; "" if it can."""
    if resources.toolkit() and all(map(tool, TOOLS)):
        return ""
    return f"nvcc, cuobjdump, {' and '.join(TOOLS)} are not all installed: pip install .[nvcc]"


class CudaBuild:
    """Begins at once, at the lowest priority: tests have the processors first."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="fastlstm-cuda-", ignore_cleanup_errors=True)
        self._folder = Path(self._temporary.name)
        cmake = tool("cmake") or "cmake"
        options = {"FASTLSTM_CUDA": "ON", "Python_EXECUTABLE": sys.executable, "CMAKE_MAKE_PROGRAM": tool("ninja")}
        defined = [f"-D{name}={value}" for name, value in options.items()]
        configure = shlex.join([cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(self._folder), *defined])
        build = shlex.join([tool("ninja") or "ninja", "-C", str(self._folder), "_cuda"])
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                # In the session of the tests: Linux may give each session its share, whatever its priority is.
                ["nice", "-n", "19", "sh", "-c", f"{configure} && exec {build}"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def _log(self) -> Path:
        return self._folder / "log.txt"

    def wait(self) -> Path:
        """The folder with all that was built; raises RuntimeError where that failed."""
        if self._process.wait():
            raise RuntimeError(f"cmake failed: {self._log.read_text()}")
        return self._folder

    def stop(self) -> None:
        self._process.terminate()  # ninja ends what it has begun
        self._process.wait()
        self._temporary.cleanup()


KEY = pytest.StashKey[CudaBuild]()  # where the session keeps its build
