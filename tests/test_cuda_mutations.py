"""Faults that the kernels seed into themselves, one at a time: the suite's cases have to notice each of them.

A fault of synchronisation shows under some orders of threads only, so each is tried with several.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from cases import Case, Problem, assert_same_bits, make_problem
from emulated_cuda import ROOT, Emulator
from fastlstm import LSTMCellOptions
from fastlstm.weights import WeightSpec
from gpus import Gpu

SEEDS = range(1, 13)

# The smallest case that tells, and the algorithm that runs it.
CUT = Case("cut", WeightSpec(2, 3), 4, 3, reset="random")
HELD = Case("held", WeightSpec(2, 3), 4, 3, mask="random")
PLAIN = Case("plain", WeightSpec(2, 3), 3, 2)
NORMALISED = Case("normalised", WeightSpec(2, 3, layer_norm=True), 3, 2)
MASK_A_GATE = Case(
    "a_product_a_gate", WeightSpec(2, 3), 2, 2, cell=LSTMCellOptions(recurrent_dropout=0.5, dropout_per_gate=True)
)
TWO_CHUNKS = Case("two_chunks_of_wide_tiles", WeightSpec(2, 32), 2, 2)
TWO_SLICES = Case("two_slices", WeightSpec(2, 35), 2, 2)
FOUR_BLOCKS = Case("four_blocks", WeightSpec(2, 37), 4, 3)
UNWRITTEN = Case("a_nan_of_ones_in_h0", WeightSpec(2, 3), 2, 2)
# Of its gradients, not all that a step multiplies fits into the shared memory of a block.
TWO_PARTS = Case("two_parts_of_the_depth", WeightSpec(2, 100), 2, 2)
SHARED_BYTES = {TWO_PARTS: 49000}
FAULTS: dict[str, tuple[Case, str]] = {
    "deliver: h survives a cut": (CUT, "step"),
    "deliver: y forgotten": (PLAIN, "step"),
    "unit_forward: every step counts": (HELD, "step"),
    "entering_c: c survives a cut": (CUT, "step"),
    "entering_c: c of another step": (PLAIN, "step"),
    "entering_gates: i and f change places": (PLAIN, "step"),
    "reaching_h: dh survives a cut": (CUT, "step"),
    "reaching_h: dy of masked steps": (HELD, "step"),
    "unit_backward: every step counts": (HELD, "step"),
    "unit_backward: dc survives a cut": (CUT, "step"),
    "entering_c: c before a cut": (CUT, "step"),
    "product: first barrier": (MASK_A_GATE, "step"),
    "product: barrier before a chunk": (TWO_CHUNKS, "step"),
    "product: barrier after a chunk": (PLAIN, "step"),
    "product: barrier before the sums": (PLAIN, "step"),
    "product: last barrier": (PLAIN, "step"),
    "mean_over: first barrier": (NORMALISED, "step"),
    "mean_over: second barrier": (NORMALISED, "step"),
    "normalised_backward: barrier": (NORMALISED, "step"),
    "resident_product: first barrier": (PLAIN, "resident"),
    "resident_product: second barrier": (TWO_SLICES, "resident"),
    "next_part: first barrier": (TWO_PARTS, "persistent"),
    "next_part: second barrier": (PLAIN, "persistent"),
    "find_sums: barrier": (PLAIN, "persistent"),
    "load_tile: not waited for": (FOUR_BLOCKS, "persistent"),
    "writable: as it is": (UNWRITTEN, "persistent"),
    "as_factor: not rounded": (PLAIN, "tf32"),
}
NOTHING = "publish: nothing"  # which all wait for until they give up


@pytest.fixture
def emulated(emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setitem(sys.modules, "fastlstm._cuda", emulated_module)
    return Gpu("emulated")


def shows(solve: Callable[[], dict[str, np.ndarray]], expected: dict[str, np.ndarray]) -> bool:
    """Whether a run fails, or finds anything else than expected."""
    try:
        found = solve()
    except RuntimeError:  # deadlock, livelock, divergence
        return True
    return any(found[name].tobytes() != array.tobytes() for name, array in expected.items())


def run(gpu: Gpu, case: Case, algo: str) -> dict[str, np.ndarray]:
    """algo: as the library's, or "tf32", the persistent one on tensor cores."""
    tf32 = algo == "tf32"
    return gpu.solve(problem_of(case), "persistent" if tf32 else algo, tf32)


def problem_of(case: Case) -> Problem:
    problem = make_problem(case, seed=4).astype("float32")
    if case == UNWRITTEN:
        problem.state[0][0, 0, 0] = np.array(-1, np.int32).view(np.float32)
    return problem


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_noticed(emulated: Gpu, emulator: Emulator, name: str) -> None:
    case, algo = FAULTS[name]
    emulator.set_shared_bytes(SHARED_BYTES.get(case, 227 << 10))
    expected = run(emulated, case, algo)
    for seed in SEEDS:
        emulator.set_seed(seed)
        assert not shows(lambda: run(emulated, case, algo), expected), f"without a fault, seed {seed} differs"
    emulator.set_mutation(name)
    for seed in SEEDS:
        emulator.set_seed(seed)
        if shows(lambda: run(emulated, case, algo), expected):
            return
    pytest.fail(f"no seed noticed {name!r}")


def test_blocks_that_wait_in_vain_give_up(emulated: Gpu, emulator: Emulator) -> None:
    """The launch ends, with numbers that nobody may use; the next call says so, and those after it are right again."""
    expected = run(emulated, FOUR_BLOCKS, "persistent")
    emulator.set_livelock_limit(1 << 40)
    emulator.set_mutation(NOTHING)
    with pytest.raises(RuntimeError, match='an earlier launch of algorithm "persistent" gave up waiting for a block'):
        run(emulated, FOUR_BLOCKS, "persistent")
    emulator.set_mutation("")
    assert_same_bits(run(emulated, FOUR_BLOCKS, "persistent"), expected)


def test_every_fault_is_in_the_table() -> None:
    sources = (ROOT / "csrc" / "cuda").iterdir()
    found = {name for path in sources for name in re.findall(r'\bmutated\("([^"]+)"\)', path.read_text())}
    assert found == {*FAULTS, NOTHING}


def test_every_fault_is_reached(emulated: Gpu, emulator: Emulator) -> None:
    for case, algo in FAULTS.values():
        emulator.set_shared_bytes(SHARED_BYTES.get(case, 227 << 10))
        run(emulated, case, algo)
    assert set(emulator.mutations_reached()) == {*FAULTS, NOTHING}
