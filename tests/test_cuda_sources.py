"""Rules of the kernels' sources, by reading them: what is special stays in the files made for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
pytestmark = pytest.mark.skipif(not CUDA.exists(), reason="needs the sources")

# The files that have it: there it has a twin for the emulator, an error that names the kernel, or an order in memory.
ONLY_IN: dict[str, tuple[str, set[str]]] = {
    "launches without a check": (r"<<<", set()),
    "launches": (r"\bcudaLaunch(Cooperative)?Kernel", {"launch.h"}),
    "shared memory": (r"\b__shared__\b", {"device.cuh"}),
    "inline PTX": (r"\basm\b", {"device.cuh"}),
    "intrinsics": (r"(?<!wmma::)\b__(?!sync(warp|threads(_or)?)\(|launch_bounds__\()\w+\(", {"device.cuh"}),
    "tensor cores": (r"\bwmma::", {"persistent_product.cuh"}),
    "atomic operations": (r"\batomic", set()),
    "relaxed accesses": (r"\b(load|store)_relaxed\b", {"device.cuh", "exchange.cuh", "persistent_product.cuh"}),
}


def code_of(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


@pytest.mark.parametrize("what", ONLY_IN)
def test_stays_in_its_files(what: str) -> None:
    pattern, files = ONLY_IN[what]
    assert {path.name for path in CUDA.iterdir() if re.search(pattern, code_of(path))} == files


def test_all_shared_memory_comes_from_one_place() -> None:
    # Static arrays of template kernels would be one for all blocks in emulation.
    declared = re.findall(r"(?:\w+ )?__shared__", code_of(CUDA / "device.cuh"))
    assert declared == ["extern __shared__"]
