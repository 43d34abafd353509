"""Builds `_cuda` for the emulated GPU: the sources that nvcc compiles, by the C++ compiler of this machine."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
EMULATION = ROOT / "tests" / "cuda_emulation"
SOURCES = [
    *sorted(EMULATION.glob("*.cpp")),
    *sorted((ROOT / "csrc" / "cuda").glob("*.cu")),
    *(ROOT / "csrc" / "python" / name for name in ("cuda.cpp", "device_arrays.cpp", "cell_options.cpp")),
]


def cuda_headers() -> Path | None:
    """NVIDIA's headers, from PyPI's wheels or from a toolkit."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    nvcc = shutil.which("nvcc")
    toolkits = [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    found = [*sorted(packages.glob("cu1*/include")), *toolkits, Path("/usr/local/cuda/include")]
    needed = ("cuda_fp16.h", "nv/target", "crt/host_defines.h")
    return next((path for path in found if all((path / name).exists() for name in needed)), None)


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def build(folder: Path, *, flags: tuple[str, ...] = ("-O2",)) -> ModuleType:
    """Compile and import the emulated module; two sources at a time."""
    import pybind11

    headers, cxx = cuda_headers(), compiler()
    assert headers and cxx
    includes = [EMULATION, headers, pybind11.get_include(), sysconfig.get_path("include")]
    command = [
        cxx,
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-attributes",
        "-DFASTLSTM_EMULATION",
        '-DFASTLSTM_CUDA_ARCHITECTURES="emulated"',
        *flags,
    ]
    command += [f"-I{path}" for path in includes]
    objects = [folder / f"{source.name}.o" for source in SOURCES]
    jobs = [
        subprocess.Popen([*command, "-x", "c++", "-c", source, "-o", to], stderr=subprocess.PIPE, text=True)
        for source, to in zip(SOURCES, objects, strict=True)
    ]
    for job in jobs:
        _, errors = job.communicate()
        assert job.returncode == 0, errors
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([cxx, "-shared", *objects, "-o", module], check=True)
    return load(module)


class Emulator:
    """The settings of the emulator inside a module that `build` made."""

    def __init__(self, module: ModuleType) -> None:
        self._library = ctypes.CDLL(str(module.__file__))

    def set_seed(self, seed: int) -> None:
        """Of the order in which threads run from now on."""
        self._library.emulation_set_seed(ctypes.c_uint64(seed))

    def set_mutation(self, name: str) -> None:
        """The fault that kernels have from now on; "" for none."""
        self._library.emulation_set_mutation(name.encode())

    def mutations_reached(self) -> list[str]:
        """All faults that the kernels which have run could have had."""
        buffer = ctypes.create_string_buffer(65536)
        self._library.emulation_mutations_reached(buffer, ctypes.c_size_t(len(buffer)))
        return buffer.value.decode().split("\n")[:-1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastlstm._cuda", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
