"""`fastlstm.keras` on each of Keras's backends, a process for each: our own tests, and Keras's with our layer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)

HERE = Path(__file__).parent
# Warnings are errors of fastlstm's tests only where no one else's code runs.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
# JAX compiles a program for each shape, which then runs once or twice: unoptimised, all takes two thirds of the time.
UNOPTIMISED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(params=["numpy", "torch", "tensorflow", "jax"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def run(backend: str, home: Path, *arguments: object) -> None:
    """Run pytest on arguments, and pass on what it says if it fails."""
    environment = os.environ | {"KERAS_BACKEND": backend, "KERAS_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if backend == "jax":
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}"
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [*PYTEST, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_our_own(backend: str, tmp_path: Path) -> None:
    run(backend, tmp_path, *(HERE / f"keras_{name}.py" for name in ("face", "calls", "models")))


def test_keras_s_own(backend: str, tmp_path: Path) -> None:
    """The files of its wheel for LSTM, Bidirectional and RNN, with `ours_in_keras` in the process."""
    files = Path(importlib.util.find_spec("keras").origin).parent / "src" / "layers" / "rnn"  # type: ignore[union-attr, arg-type]
    names = [files / f"{name}_test.py" for name in ("lstm", "bidirectional", "rnn")]
    run(backend, tmp_path, "-c", os.devnull, "--rootdir", tmp_path, "-p", "ours_in_keras", *names)
