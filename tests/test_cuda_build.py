"""What nvcc makes of the kernels: registers, instructions, blocks that fit at once, a module that imports anywhere.

`pip install '.[test,nvcc]'`. The module is built once, as `pip install` builds it with FASTLSTM_CUDA=ON.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

import pytest

import cuda_build
import fastlstm
from cuda_build import resources, tool

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = {80, 86, 89, 90, 100, 120}
REGISTERS_OF_A_BLOCK = 65536
LARGEST_MODULE = 11 * 2**20  # bytes; 10.1 million were measured

# Registers that the variants of a kernel may take on any architecture, by the number type: what is measured, rounded up
# to 8. Whoever needs more says why, and what becomes of the blocks that run at once.
BUDGET = {
    "step_forward": {"__half": 128, "__nv_bfloat16": 128, "float": 128, "double": 240},
    "step_backward": {"__half": 128, "__nv_bfloat16": 128, "float": 128, "double": 240},
    "project_forward": {"__half": 120, "__nv_bfloat16": 128, "float": 128, "double": 200},
    "gradient_of_h": {"__half": 120, "__nv_bfloat16": 120, "float": 128, "double": 240},
    "recurrent_sums": {"__half": 128, "__nv_bfloat16": 128, "float": 128, "double": 240},
    "gradient_sums": {"__half": 120, "__nv_bfloat16": 128, "float": 128, "double": 240},
    "normalised_forward": {"__half": 104, "__nv_bfloat16": 104, "float": 104, "double": 128},
    "normalised_backward": {"__half": 120, "__nv_bfloat16": 128, "float": 120, "double": 128},
    "resident_forward": {"__half": 160, "__nv_bfloat16": 160, "float": 168, "double": 192},
    "resident_backward": {"__half": 184, "__nv_bfloat16": 184, "float": 184, "double": 216},
    "persistent_forward": {"__half": 232, "__nv_bfloat16": 248, "float": 240, "double": 248},
    "persistent_backward": {"__half": 224, "__nv_bfloat16": 248, "float": 255, "double": 232},
}
SMALL = 48  # of every other kernel, which do the same to each element


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    """Where cmake built `_cuda`."""
    if reason := cuda_build.why_not():
        pytest.skip(reason)
    return request.config.stash[cuda_build.KEY].wait()


@pytest.fixture(scope="module")
def module(folder: Path) -> Path:
    return folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.fixture(scope="module")
def kernels(module: Path) -> list:
    return resources.kernels_of(module)


@pytest.mark.slow
def test_every_architecture_has_every_kernel_and_the_last_one_ptx(module: Path, kernels: list) -> None:
    by_kernel = defaultdict(set)
    for kernel in kernels:
        by_kernel[kernel.name, kernel.arguments].add(kernel.architecture)
    assert len(by_kernel) > 200 and set(map(frozenset, by_kernel.values())) == {frozenset(ARCHITECTURES)}
    assert set(re.findall(r"sm_(\d+)", resources.dump_of(module, "--list-ptx"))) == {"100"}


@pytest.mark.slow
def test_a_warning_is_an_error(folder: Path) -> None:
    commands = resources.output_of(tool("ninja"), "-C", folder, "-t", "commands", "_cuda").splitlines()
    compiled = [line for line in commands if ".cu.o" in line and " -c " in line]
    assert len(compiled) == len(list((ROOT / "csrc" / "cuda").glob("*.cu")))
    assert all("-Werror all-warnings" in line for line in compiled)


@pytest.mark.slow
def test_registers(kernels: list) -> None:
    assert {kernel.name for kernel in kernels} > set(BUDGET)
    over, most = [], defaultdict(int)
    for kernel in kernels:
        budget = BUDGET.get(kernel.name, {}).get(kernel.arguments[0], SMALL)
        most[kernel.name, kernel.arguments[0]] = max(most[kernel.name, kernel.arguments[0]], kernel.registers)
        if kernel.stack or kernel.registers > budget or kernel.registers * kernel.threads > REGISTERS_OF_A_BLOCK:
            over.append(kernel)
    assert not over
    loose = {place: used for place, used in most.items() if used <= BUDGET.get(place[0], {}).get(place[1], 0) - 8}
    assert not loose, "the budget allows more than is used"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_tensor_cores_are_used_where_they_are_meant_and_memory_is_not(module: Path, architecture: int) -> None:
    by_kernel = resources.opcodes_of(module, architecture, ["HMMA", "LDL", "STL"])
    meant = {kernel for kernel in by_kernel if kernel[0].startswith("persistent") and kernel[1][-1] == "true"}
    assert len(meant) == 3 * 2 * 2 * 3  # float16, bfloat16, tf32; both passes; rows; kinds of cell
    for kernel, opcodes in by_kernel.items():
        assert opcodes == ({"HMMA"} if kernel in meant else set()), kernel


@pytest.mark.slow
def test_blocks_that_wait_for_each_other_all_fit(kernels: list) -> None:
    """A persistent launch has as many blocks as there are multiprocessors, each with all the shared memory there is."""
    asked = [
        (device, kernel.registers, kernel.threads, device.shared_of_block)
        for device in resources.DEVICES
        for kernel in kernels
        if kernel.architecture == device.architecture and kernel.name.startswith("persistent")
    ]
    assert len(asked) > 200 and set(resources.blocks_at_once(asked)) == {1}
    # The calculator does say no: to one byte more, and to more registers than there are.
    device = resources.DEVICES[0]
    no = [(device, 128, 256, device.shared_of_block + 1), (device, 255, 512, 0)]
    assert set(resources.blocks_at_once(no)) == {0}


@pytest.mark.slow
def test_as_many_blocks_of_a_step_fit_as_are_meant(kernels: list) -> None:
    """kBlocksAtOnce of the step kernels, with what a product takes."""
    numbers = 8 * (16 * (32 + 4) + 32 * 8)  # kProductBytes of narrow tiles, and of wide ones
    for size, meant in ((8, 1), (4, 2)):
        asked = [
            (device, kernel.registers, kernel.threads, numbers * size)
            for device in resources.DEVICES
            for kernel in kernels
            if kernel.architecture == device.architecture
            and kernel.name in ("step_forward", "step_backward")
            and (kernel.arguments[0] == "double") == (size == 8)
        ]
        assert len(asked) > 50 and min(resources.blocks_at_once(asked)) >= meant


@pytest.mark.slow
def test_the_module_is_small_and_imports_without_a_driver(module: Path, tmp_path: Path) -> None:
    assert module.stat().st_size < LARGEST_MODULE
    package = tmp_path / "fastlstm"
    shutil.copytree(Path(fastlstm.__path__[0]), package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(module, package)
    code = "import fastlstm; print(fastlstm.build_config()); fastlstm.LSTM(3, 5).to('cuda')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},  # none is seen, even if one is there
        capture_output=True,
        text=True,
    )
    assert "'cuda': False" in done.stdout
    assert "'cuda_architectures': 'sm_80 sm_86 sm_89 sm_90 sm_100 sm_120'" in done.stdout
    assert re.search(r"'cuda_runtime': 13\d\d\d", done.stdout)
    why = r"there is (no NVIDIA driver for CUDA 13: install|a driver, but)"
    assert re.search("RuntimeError: a GPU is asked for, but " + why, done.stderr)


@pytest.mark.slow
def test_the_model_on_paper_is_of_these_kernels(module: Path, tmp_path: Path) -> None:
    """All but the registers, which another version of nvcc may allot otherwise."""
    written = tmp_path / "model.md"
    resources.output_of(sys.executable, ROOT / "bench" / "cuda_model.py", module, "--to", written)
    found, committed = (
        path.read_text().partition("## Kernels")[0] for path in (written, ROOT / "bench" / "cuda_model.md")
    )
    assert found == committed, "run bench/cuda_model.py again"
