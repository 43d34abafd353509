"""What a built `_cuda` tells of its kernels where there is no GPU: registers, machine code, blocks that run at once.

NVIDIA's tools for it come from PyPI (`pip install .[nvcc]`), or from a toolkit on the PATH.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Device:
    """What blocks share; from the tables of NVIDIA's CUDA C++ Programming Guide, on compute capabilities."""

    name: str
    architecture: int
    processors: int
    threads: int  # of a multiprocessor
    shared_of_block: int  # bytes
    shared_of_processor: int


DEVICES = [
    Device("A100", 80, 108, 2048, 166912, 167936),
    Device("RTX 3090", 86, 82, 1536, 101376, 102400),
    Device("L4", 89, 58, 1536, 101376, 102400),
    Device("H100", 90, 132, 2048, 232448, 233472),
    Device("B200", 100, 148, 2048, 232448, 233472),
    Device("RTX 5090", 120, 170, 1536, 101376, 102400),
]


@dataclass(frozen=True)
class Kernel:
    name: str
    arguments: tuple[str, ...]  # of its template, the storage type first
    architecture: int
    registers: int  # of a thread
    stack: int  # bytes of a thread: where there are any, registers were spilled or arrays have an index

    @property
    def threads(self) -> int:
        """Of a block, at most; see most_resident_threads."""
        wide = self.name.startswith("resident") and self.arguments[0] != "double" and self.arguments[2] == "0"
        return 512 if wide else 256


def toolkit() -> Path | None:
    """The folder of NVIDIA's compiler with what reads its output, from PyPI or a toolkit; None without."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*"), reverse=True)
    nvcc = shutil.which("nvcc")
    found += [Path(nvcc).resolve().parent.parent] if nvcc else []
    needed = ("bin/nvcc", "bin/cuobjdump", "bin/nvdisasm", "include/cuda_occupancy.h")
    return next((path for path in found if all((path / name).is_file() for name in needed)), None)


def output_of(*command: str | Path, given: str = "") -> str:
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}")
    return done.stdout


def dump_of(module: Path, *options: str) -> str:
    """What cuobjdump says, with the kernels' names as in the source."""
    folder = toolkit()
    if folder is None:
        raise RuntimeError("there is no cuobjdump: pip install .[nvcc]")
    return output_of("c++filt", given=output_of(folder / "bin" / "cuobjdump", *options, module))


def kernels_of(module: Path) -> list[Kernel]:
    """Every kernel for every architecture."""
    found, architecture, name = [], 0, ""
    for line in dump_of(module, "-res-usage").splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.match(r" Function (.*):$", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            registers, stack, local = map(int, match.groups())
            found.append(Kernel(*parts_of(name), architecture, registers, stack + local))
    return found


def parts_of(signature: str) -> tuple[str, tuple[str, ...]]:
    """Name and template arguments: "void fastlstm::gpu::step_forward<float, 4, (..CellKind)0>(..)"."""
    plain = signature.replace("fastlstm::gpu::", "").replace("(CellKind)", "").removeprefix("void ")
    match = re.match(r"(\w+)<([^(]*?)>\(", plain)
    if match is None:
        raise RuntimeError(f"{signature!r} is no kernel's signature")
    return match[1], tuple(match[2].split(", "))


def opcodes_of(module: Path, architecture: int, wanted: Iterable[str]) -> dict[tuple[str, tuple[str, ...]], set[str]]:
    """Which of the wanted instructions each kernel has."""
    found: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
    pattern = re.compile(rf"\b({'|'.join(wanted)})\b")
    kernel: tuple[str, tuple[str, ...]] = ("", ())
    for line in dump_of(module, "-sass", "-arch", f"sm_{architecture}").splitlines():
        if match := re.match(r"\s*Function : (.*)", line):
            kernel = parts_of(match[1])
            found[kernel] = set()
        else:
            found[kernel].update(pattern.findall(line))
    del found["", ()]
    return found


def blocks_at_once(asked: list[tuple[Device, int, int, int]]) -> list[int]:
    """How many blocks a multiprocessor runs at once, for each device, registers of a thread, threads, shared bytes."""
    folder = toolkit()
    if folder is None:
        raise RuntimeError("there is no cuda_occupancy.h: pip install .[nvcc]")
    lines = [
        f"{device.architecture} {registers} {threads} {shared} "
        f"{device.threads} {device.shared_of_block} {device.shared_of_processor}"
        for device, registers, threads, shared in asked
    ]
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / "occupancy"
        output_of("g++", "-isystem", folder / "include", HERE / "cpp" / "occupancy.cpp", "-o", program)
        return [int(line) for line in output_of(program, given="\n".join(lines)).split()]
