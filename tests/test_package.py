"""The package as its users get it: what importing loads, what it says of itself, what the archives hold and install."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import __main__ as command
from fastlstm import _core, functional, selfcheck

ROOT = Path(__file__).resolve().parents[1]

# All that `import fastlstm` may load beyond NumPy. A longer list makes every user's program start later.
OWN_MODULES = [
    "fastlstm",
    "fastlstm._core",
    "fastlstm.activations",
    "fastlstm.cells",
    "fastlstm.compressed",
    "fastlstm.config",
    "fastlstm.cuda",
    "fastlstm.device_arrays",
    "fastlstm.device_backward",
    "fastlstm.device_forward",
    "fastlstm.device_layouts",
    "fastlstm.device_owned_weights",
    "fastlstm.device_stream",
    "fastlstm.device_weights",
    "fastlstm.dropout",
    "fastlstm.functional",
    "fastlstm.gradients",
    "fastlstm.inference",
    "fastlstm.layers",
    "fastlstm.layouts",
    "fastlstm.masking",
    "fastlstm.owned_weights",
    "fastlstm.slstm",
    "fastlstm.slstm_weights",
    "fastlstm.stream",
    "fastlstm.weights",
]
OTHER_MODULES = [
    "__future__",
    "collections.abc",
    "contextlib",
    "copy",
    "dataclasses",
    "operator",
    "threading",
    "typing",
]

# Faces of frameworks that need not be installed.
FACES = {"fastlstm.jax", "fastlstm.keras", "fastlstm.onnx", "fastlstm.sklearn", "fastlstm.torch"}
FOLDERS = {"fastlstm": fastlstm.__path__} | {
    f"fastlstm.{name}": [f"{fastlstm.__path__[0]}/{name}"] for name in ("jax", "onnx", "sklearn", "torch")
}
MODULES = [
    "fastlstm",
    *(info.name for name, path in FOLDERS.items() for info in pkgutil.iter_modules(path, name + ".")),
]

MEGABYTE = 1_000_000


def output_of(*argv: str | Path, cwd: Path) -> str:
    """Run a program and return what it printed; where it fails, show all that it said."""
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500)
    assert done.returncode == 0, f"{argv} exited {done.returncode}:\n{done.stdout[-8000:]}"
    return done.stdout


def answer_of(code: str, cwd: Path, python: str | Path = sys.executable) -> Any:
    """Run `code` in a fresh interpreter that sees no source tree, and parse the JSON that it prints."""
    return json.loads(output_of(python, "-I", "-c", code, cwd=cwd))


def test_version_comes_from_the_native_module() -> None:
    assert fastlstm.__version__ == _core.__version__ == fastlstm.build_config()["version"]
    assert fastlstm.__version__ == importlib.metadata.version("fastlstm")


def test_numpy_is_the_only_dependency() -> None:
    required = [line for line in importlib.metadata.requires("fastlstm") or [] if "extra ==" not in line]
    assert [re.split(r"\W", line)[0] for line in required] == ["numpy"]


def test_import_loads_no_needless_module(tmp_path: Path) -> None:
    code = f"""
import json, sys, numpy, numpy.typing, {", ".join(OTHER_MODULES)}
before = set(sys.modules)
import fastlstm
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    assert answer_of(code, tmp_path) == OWN_MODULES


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_import_starts_no_thread(tmp_path: Path) -> None:
    code = """
import json, os, numpy
before = len(os.listdir("/proc/self/task"))
import fastlstm
print(json.dumps(len(os.listdir("/proc/self/task")) - before))
"""
    assert answer_of(code, tmp_path) == 0


def test_command_describes_the_build_and_passes(tmp_path: Path) -> None:
    text = output_of(sys.executable, "-m", "fastlstm", cwd=tmp_path)
    config = fastlstm.build_config()
    for fact in (config["version"], config["compiler"], *config["isa_compiled"], config["cuda_reason"]):
        assert fact in text
    for isa in config["isa_runnable"]:
        assert re.search(rf"{isa} +float32 .* ok\n", text)
        assert re.search(rf"{isa} +float64 .* ok\n", text)


@pytest.mark.parametrize("wrong", [1e-4, np.nan], ids=["slightly_off", "nan"])
def test_command_fails_on_a_wrong_kernel(
    wrong: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = functional.lstm_forward

    def wrong_forward(*args: object, **options: object) -> tuple[object, ...]:
        y, *rest = right(*args, **options)
        y[0, 0, 0] += wrong
        return (y, *rest)

    monkeypatch.setattr(functional, "lstm_forward", wrong_forward)
    active = fastlstm.active_isa()
    assert command.main() == 1
    assert "FAILED" in capsys.readouterr().out
    assert fastlstm.active_isa() == active


def test_selfcheck_covers_every_runnable_isa_and_dtype() -> None:
    found = {(check.isa, check.dtype) for check in selfcheck.run()}
    assert found == {(isa, t) for isa in fastlstm.build_config()["isa_runnable"] for t in ("float32", "float64")}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as missing:
        if not name.startswith(tuple(FACES)):
            raise
        pytest.skip(f"{name} needs a framework: {missing}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


def test_readme_example_runs(tmp_path: Path) -> None:
    example = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[0]
    output_of(sys.executable, "-I", "-c", example, cwd=tmp_path)


STUBS = ast.parse((Path(fastlstm.__file__).parent / "_core.pyi").read_text())
# the metaclass, and the refusal to construct
PYBIND11_ONLY = r"fastlstm\._core\.(Stream|(Slstm)?(Weights|Tape|Tape\.__init__))"


def test_stubs_name_what_the_native_module_has(tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text(PYBIND11_ONLY)
    options = ["--allowlist", "allowed", "--ignore-unused-allowlist", "--ignore-missing-stub"]
    output_of(sys.executable, "-m", "mypy.stubtest", *options, "fastlstm._core", cwd=tmp_path)
    described = {node.name for node in STUBS.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert described == {name for name in vars(_core) if not name.startswith("_")}


@pytest.mark.parametrize("name", [node.name for node in STUBS.body if isinstance(node, ast.FunctionDef)])
def test_stubs_name_the_arguments(name: str) -> None:
    # stubtest sees no signature of a compiled function; pybind11 writes it into the first line of the docstring.
    stub = next(node for node in STUBS.body if isinstance(node, ast.FunctionDef) and node.name == name)
    signature = getattr(_core, name).__doc__.splitlines()[0].partition(" -> ")[0]
    assert re.findall(r"[(,] ?(\w+): ", signature) == [argument.arg for argument in stub.args.args]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that pip builds of it, by suffix."""
    folder = tmp_path_factory.mktemp("dist")
    output_of(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (sdist,) = folder.iterdir()
    # As for a user who needs no kernels that only tests use.
    options = ["--no-deps", "--config-settings=cmake.define.FASTLSTM_TEST_ISA=OFF", "--wheel-dir", folder]
    output_of(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=folder)
    built = {path.suffix: path for path in folder.iterdir()}
    assert set(built) == {".gz", ".whl"}
    return built


@pytest.mark.slow
def test_sdist_is_small_and_complete(archives: dict[str, Path]) -> None:
    assert archives[".gz"].stat().st_size < 5 * MEGABYTE
    with tarfile.open(archives[".gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "CMakeLists.txt", "csrc/cell.h", "csrc/version.h"} <= names
    assert {"python/fastlstm/py.typed", "python/fastlstm/_core.pyi", "tests/test_package.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith((".venv", "build/"))]


@pytest.mark.slow
def test_wheel_is_small_and_complete(archives: dict[str, Path]) -> None:
    assert archives[".whl"].stat().st_size < 5 * MEGABYTE
    with zipfile.ZipFile(archives[".whl"]) as wheel:
        names = wheel.namelist()
        info = f"fastlstm-{fastlstm.__version__}.dist-info"
        assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert {"fastlstm/__init__.py", "fastlstm/py.typed", "fastlstm/_core.pyi"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"fastlstm", info}


@pytest.mark.slow
def test_wheel_installs_into_a_clean_venv(archives: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    output_of(python, "-m", "pip", "install", archives[".whl"], cwd=tmp_path)
    code = """
import importlib.metadata as metadata, json, fastlstm
files = [str(path) for path in metadata.files("fastlstm")]
print(json.dumps([fastlstm.__version__, metadata.version("fastlstm"), fastlstm.__file__, files]))
"""
    version, recorded, imported, files = answer_of(code, tmp_path, python)
    assert version == recorded == fastlstm.__version__
    assert Path(imported).is_relative_to(tmp_path / "venv")
    assert {"fastlstm/py.typed", "fastlstm/_core.pyi"} <= set(files)
    assert [name for name in files if name.endswith("licenses/LICENSE")]
    assert "checks passed" in output_of(python, "-m", "fastlstm", cwd=tmp_path)
