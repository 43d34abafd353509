"""`set_isa`, FASTLSTM_ISA and `set_num_threads`: what they change, and what they say of what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fastlstm
from cases import assert_same_bits
from fastlstm import LSTM, _core, functional

X = np.random.default_rng(0).standard_normal((6, 4, 5), np.float32)
RUNNABLE = fastlstm.build_config()["isa_runnable"]


def small() -> LSTM:
    return LSTM(5, 7, num_layers=2, bidirectional=True, seed=3)


def test_layer_follows_set_isa_and_its_tapes_do_not() -> None:
    lstm, expected = small(), {}
    for isa in RUNNABLE:
        fastlstm.set_isa(isa)
        assert fastlstm.active_isa() == isa == fastlstm.build_config()["isa_active"]
        y, _, tape = lstm.forward(X)
        expected[isa] = (y, tape, lstm.backward(tape, np.ones_like(y)))
        assert_same_bits({"y": y}, {"y": small()(X)[0]})  # a layer that was never packed for another
    for y, tape, g in expected.values():
        again = lstm.backward(tape, np.ones_like(y))
        assert_same_bits(again.weights | {"x": again.x}, g.weights | {"x": g.x})


@pytest.mark.parametrize("name", ["avx3", "", "X86_V3", "x86_v3 "])
def test_unknown_isa_is_refused_with_what_can_run(name: str) -> None:
    before = fastlstm.active_isa()
    with pytest.raises(
        ValueError, match=rf"instruction set '{name}' cannot run here: expected one of {', '.join(RUNNABLE)}"
    ):
        fastlstm.set_isa(name)
    assert fastlstm.active_isa() == before


def test_isa_that_this_machine_lacks_is_refused() -> None:
    missing = [isa for isa in fastlstm.build_config()["isa_compiled"] if isa not in RUNNABLE]
    if not missing:
        pytest.skip("every compiled instruction set can run here")
    for isa in missing:
        with pytest.raises(ValueError, match=f"'{isa}' cannot run here: expected one of {', '.join(RUNNABLE)}"):
            fastlstm.set_isa(isa)


def run_with_isa(name: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FASTLSTM_ISA": name}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", RUNNABLE)
def test_environment_forces_the_isa(name: str) -> None:
    done = run_with_isa(name, "import fastlstm, json; print(json.dumps(fastlstm.build_config()))")
    assert json.loads(done.stdout)["isa_active"] == name, done.stderr


def test_environment_with_an_unknown_isa_fails_and_says_what_can_run() -> None:
    for code in ("fastlstm.active_isa()", "fastlstm.LSTM(2, 3)(numpy.zeros((1, 1, 2), 'f'))"):
        done = run_with_isa("avx3", f"import fastlstm, numpy; {code}")
        assert done.returncode == 1
        assert (
            f"ValueError: instruction set 'avx3' cannot run here: expected one of {', '.join(RUNNABLE)}" in done.stderr
        )


def test_threads_can_be_set_and_asked() -> None:
    for threads in (1, 3, 2):
        fastlstm.set_num_threads(threads)
        assert fastlstm.get_num_threads() == threads == fastlstm.build_config()["num_threads"]


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", None])
def test_wrong_numbers_of_threads_are_refused(threads: Any) -> None:
    before = fastlstm.get_num_threads()
    with pytest.raises((ValueError, TypeError), match="expected"):
        fastlstm.set_num_threads(threads)
    assert fastlstm.get_num_threads() == before
    if threads is not None:
        with pytest.raises((ValueError, TypeError), match=r"threads is .*expected"):
            small()(X, threads=threads)


def test_paths_say_what_the_plan_is() -> None:
    packed = functional.PackedWeights.of(fastlstm.LSTM(64, 256, 2, seed=0).state_dict())
    assert packed.paths(1, 1, threads=1) == [f"layer {layer} forward: 1 thread, 48 rows at a time" for layer in (0, 1)]
    forward, backward, *_ = packed.paths(100, 256, training=True, threads=2)
    assert forward.startswith("layer 0 forward: 2 threads share the rows") and backward.startswith("layer 0 backward:")
    assert "share the units" in packed.paths(100, 1, threads=2)[0]
    assert "x . W for 48 steps at once" in packed.paths(100, 1, threads=2)[0]
    assert "panels prefetched" in functional.PackedWeights.of(fastlstm.LSTM(512, 512).state_dict()).paths(9, 64)[0]
    with pytest.raises(ValueError, match="threads is 0"):
        packed.paths(1, 1, threads=0)


def test_verbose_prints_the_path_of_each_call() -> None:
    code = "import fastlstm, numpy as np; fastlstm.LSTM(3, 5)(np.zeros((7, 2, 3), np.float32), threads=1)"
    for value, expected in (("1", "T=7 B=2: layer 0 forward: 1 thread"), ("0", "")):
        environment = os.environ | {"FASTLSTM_VERBOSE": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert (expected in done.stderr) if expected else not done.stderr


def test_profile_counts_only_while_it_is_on() -> None:
    lstm, x = fastlstm.LSTM(64, 128, seed=0), np.ones((50, 4, 64), np.float32)
    _core.profile(True)
    y, _, tape = lstm.forward(x, threads=1)
    lstm.backward(tape, np.ones_like(y), threads=1)
    seconds = _core.profile(False)
    assert set(seconds) == {"pack", "load", "project", "recur", "cell", "weight gradients"}
    assert all(value > 0 for value in seconds.values())
    lstm(x)
    assert not any(_core.profile(False).values())
