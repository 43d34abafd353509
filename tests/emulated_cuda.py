"""Builds `_cuda` for the emulated GPU: the sources that nvcc compiles, by the C++ compiler of this machine."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
EMULATION = ROOT / "tests" / "cuda_emulation"
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
OTHERS = [
    *sorted(EMULATION.glob("*.cpp")),
    *(ROOT / "csrc" / "python" / name for name in ("cuda.cpp", "device_arrays.cpp", "cell_options.cpp")),
]


def cuda_headers() -> Path | None:
    """NVIDIA's headers, from its packages on PyPI or from a toolkit."""
    nvcc = shutil.which("nvcc")
    found = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/include"), reverse=True)
    found += [Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    found += [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    found += sorted(Path("/usr/local").glob("cuda*/include"), reverse=True)
    needed = ("cuda_runtime_api.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target")
    return next((path for path in found if all((path / name).is_file() for name in needed)), None)


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def why_not() -> str:
    """Why nothing can be emulated here; "" if it can."""
    if compiler() is None:
        return "no C++ compiler"
    if cuda_headers() is None:
        return "no headers of CUDA: pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
    return ""


def compile_all(sources: Mapping[Path, Sequence[str | Path]], folder: Path) -> list[Path]:
    """Each source with flags of its own, some at a time; the objects, in order."""
    general: list[str | Path] = [
        compiler() or "",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-attributes",
    ]
    general += ["-DFASTLSTM_EMULATION", "-I", EMULATION, "-isystem", cuda_headers() or "", "-c", "-x", "c++"]
    objects = [folder / f"{source.name}.o" for source in sources]
    commands = [[*general, *sources[source], source, "-o", to] for source, to in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(succeed, commands))
    return objects


def succeed(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def build(folder: Path) -> ModuleType:
    """Compile and import the emulated module, whose kernels are checked for races.

    FASTLSTM_EMULATION_SANITIZER=address in the environment: for accesses beyond memory, instead.
    """
    import pybind11

    sanitize = f"-fsanitize={os.environ.get('FASTLSTM_EMULATION_SANITIZER', 'thread')}"
    everywhere = [] if sanitize.endswith("thread") else [sanitize]  # the hooks of a race check are the emulator's own

    general: list[str | Path] = ["-fPIC", "-fvisibility=hidden", '-DFASTLSTM_CUDA_ARCHITECTURES="emulated"']
    general += ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    # The others come first: of an inline function that both have, the linker keeps the first, and the emulator must not
    # run an instrumented one, in whose midst another thread may be chosen.
    # Most of the time is the emulator's.
    sources = {source: ["-O3", *general, *everywhere] for source in OTHERS}
    sources |= {source: ["-O1", *general, sanitize] for source in KERNELS}
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    succeed([compiler() or "", "-shared", *everywhere, *compile_all(sources, folder), "-ldl", "-o", module])
    return load(module)


class Emulator:
    """The settings of the emulator inside a module that `build` made."""

    def __init__(self, module: ModuleType) -> None:
        self._library = ctypes.CDLL(str(module.__file__))

    def set_seed(self, seed: int) -> None:
        """Of the order in which threads run from now on."""
        self._library.emulation_set_seed(ctypes.c_uint64(seed))

    def set_shared_bytes(self, size: int = 227 << 10) -> None:
        """What a block can have at most."""
        self._library.emulation_set_shared_bytes(size)

    def set_livelock_limit(self, idle_points: int = 1 << 20) -> None:
        """So many points at which threads only wait for others are an error."""
        self._library.emulation_set_livelock_limit(ctypes.c_uint64(idle_points))

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
