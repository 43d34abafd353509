"""The emulator that runs CUDA kernels on the CPU: right kernels pass under any schedule, and each fault that a kernel
can seed into itself is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import emulated_cuda
from emulated_cuda import succeed

EMULATION = Path(__file__).parent / "cuda_emulation"
EXAMPLES = EMULATION / "examples.cu"
SEEDS = 20

# What is compiled with which flags: the emulator itself, and kernels.
BUILDS = {
    "plain": ([], []),
    "races": ([], ["-fsanitize=thread"]),  # its hooks are the emulator's own
    "addresses": (["-fsanitize=address"], ["-fsanitize=address"]),
}
KERNELS = ["block", "warp", "grid", "product_half", "product_bfloat16", "product_tf32", "copies", "limits"]

# (mutation, build, what is found). "wrong": the result.
FAULTS = [
    ("block: no barrier", "plain", "wrong"),
    ("block: no barrier", "races", "race"),
    ("block: divergent barrier", "plain", "divergence"),
    ("block: early return", "plain", "divergence"),
    ("block: row out of bounds", "addresses", "heap-buffer-overflow"),
    ("warp: no __syncwarp", "plain", "wrong"),
    ("warp: no __syncwarp", "races", "race"),
    ("warp: divergent shuffle", "plain", "divergence"),
    ("warp: half a mask", "plain", "divergence"),
    ("warp: barriers cross", "plain", "deadlock"),
    ("grid: no barrier", "plain", "wrong"),
    ("grid: no barrier", "races", "race"),
    ("grid: single buffer", "plain", "wrong"),
    ("grid: single buffer", "races", "race"),
    ("grid: relaxed arrival", "races", "race"),
    ("grid: relaxed wait", "races", "race"),
    ("grid: wrong count", "plain", "livelock"),
    ("product: sum not cleared", "plain", "wrong"),
    ("product: divergent", "plain", "divergence"),
    ("product: no __syncwarp", "plain", "wrong"),
    ("product: no __syncwarp", "races", "race"),
    ("copies: no wait", "plain", "wrong"),
    ("copies: too few waited for", "plain", "wrong"),
    ("copies: no barrier before", "plain", "wrong"),
    ("copies: no barrier before", "races", "race"),
    ("copies: no barrier after", "plain", "wrong"),
    ("copies: no barrier after", "races", "race"),
]

Run = Callable[..., "list[str]"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Builds all, and returns a function that runs an example and gives its lines."""
    if reason := emulated_cuda.why_not():
        pytest.skip(reason)
    folder, emulator = tmp_path_factory.mktemp("cuda_emulation"), sorted(EMULATION.glob("*.cpp"))
    for build, (emulator_flags, kernel_flags) in BUILDS.items():
        objects = folder / f"objects_{build}"
        objects.mkdir()
        flags = ["-O1", "-g", *emulator_flags]
        sources = dict.fromkeys(emulator, flags) | {EXAMPLES: ["-O1", "-g", *kernel_flags]}
        program = emulated_cuda.compile_all(sources, objects)
        succeed([emulated_cuda.compiler() or "", *emulator_flags, *program, "-ldl", "-o", folder / build])

    def run(build: str, kernel: str, mutation: str = "", *, seeds: int = SEEDS) -> list[str]:
        # What a failure leaves on abandoned stacks is no leak to look for.
        done = subprocess.run(
            [folder / build, kernel, "1", str(seeds), mutation],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
        )
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("build", BUILDS)
def test_right_kernels_pass_under_any_schedule(run: Run, build: str, kernel: str) -> None:
    lines = [line for line in run(build, kernel) if not line.startswith("reached")]
    assert lines == ["right"] * SEEDS


@pytest.mark.parametrize(("mutation", "build", "found"), FAULTS)
def test_faults_are_found(run: Run, mutation: str, build: str, found: str) -> None:
    kernel = mutation.split(":")[0].replace("product", "product_half")
    lines = run(build, kernel, mutation, seeds=5)
    assert f"reached {mutation}" in lines or build == "addresses"  # which ends the process
    assert "right" not in lines
    assert any(found in line for line in lines), lines


def test_a_failure_names_kernel_block_thread_and_place(run: Run) -> None:
    line = run("plain", "block", "block: early return")[0]
    pattern = (
        r"divergence in \w+::sum_by_block\(float const\*, float\*\), block \(\d, 0, 0\), thread \(\d+, 0, 0\): "
        r".*__syncthreads in examples\.cu:\d+"
    )
    assert re.match(pattern, line), line


def test_every_mutation_is_tested() -> None:
    written = set(re.findall(r'mutated\("([^"]+)"\)', EXAMPLES.read_text()))
    assert written == {mutation for mutation, _, _ in FAULTS}


def test_examples_are_cuda(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    of_pip = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"))
    if not (nvcc or of_pip):
        pytest.skip("no nvcc: pip install .[nvcc]")
    flags = ["-std=c++17", "-arch=sm_80", "-Werror", "all-warnings"]
    succeed([nvcc or of_pip[-1], *flags, "-c", EXAMPLES, "-o", tmp_path / "examples.o"])
