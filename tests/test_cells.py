"""The cell's variants on the native kernels, against the float64 reference and to the last bit among themselves."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import cases
from cases import TOLERANCE, Case, Problem, assert_same_bits, make_problem, problem_of, solve, truth_of
from cell_cases import (
    ALONE,
    LONG,
    MARKS,
    SHAPES,
    SHARED,
    TOGETHER,
    VARIANTS,
    cell_of,
    own_errors,
    variant_of,
)
from combinations import in_turns
from fastlstm import LSTM, LSTMCellOptions, active_isa, functional, reference
from fastlstm.weights import WeightSpec

UNLIKE = list(ALONE | TOGETHER)  # activations differ in one call alone
EXACT = [variant for variant in UNLIKE if not cell_of(variant).draws]


def assert_close(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], dtype: str, own: dict[str, float] | None = None
) -> None:
    kind = "times for a variant" + (", x86_v2" if active_isa() == "x86_v2" else "")
    cases.assert_close(found, expected, dtype, TOLERANCE[kind], own)


def infer(problem: Problem, module: ModuleType = functional, threads: int | None = None) -> dict[str, np.ndarray]:
    """The outputs of inference."""
    p = problem
    options = p.options | {"training": False, "return_cells": True, "return_gates": True, "threads": threads}
    y, (h_n, c_n), cells, gates, tape = module.lstm_forward(p.x, p.weights, p.state, **options)
    assert tape is None
    return {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "gates": gates}


def outputs(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: found[name] for name in ("y", "h_n", "c_n", "cells", "gates")}


# Against the reference


@in_turns(variant=VARIANTS, case=SHAPES)
def test_training(isa: str, dtype: str, variant: str, case: Case) -> None:
    case = variant_of(variant, case)
    assert_close(solve(problem_of(case).astype(dtype)), truth_of(case), dtype, own_errors(case, dtype))


@in_turns(variant=VARIANTS, case=SHAPES)
def test_inference(isa: str, dtype: str, variant: str, case: Case) -> None:
    case = variant_of(variant, case)
    found = infer(problem_of(case).astype(dtype))
    assert_close(found, inferred_truth_of(case), dtype, own_errors(case, dtype, infer))


@functools.cache
def inferred_truth_of(case: Case) -> dict[str, np.ndarray]:
    return infer(problem_of(case), reference)


@in_turns(variant=UNLIKE, case=SHARED)
def test_work_shared_by_threads(isa: str, dtype: str, variant: str, case: Case) -> None:
    """With one thread it has the same bits, see below."""
    case = variant_of(variant, case)
    found = solve(problem_of(case).astype(dtype), threads=2)
    assert_close(found, truth_of(case), dtype, own_errors(case, dtype))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name]])
def test_a_variant_departs_from_the_textbook_in_forward_and_backward(variant: str) -> None:
    case = next(case for case in SHAPES if case.name == "in_every_way")
    plain, found = truth_of(variant_of("gates_of_the_textbook", case)), truth_of(variant_of(variant, case))
    assert (found["y"] != plain["y"]).any()
    assert (found["dweight_hh_l1"] != plain["dweight_hh_l1"]).any()


def test_masks_by_gate_of_nothing_change_nothing(isa: str, dtype: str) -> None:
    """As where a cell with such masks takes gradients in inference."""
    case = next(case for case in SHAPES if case.name == "in_every_way")
    problem = problem_of(variant_of("gates_of_the_textbook", case)).astype(dtype)
    by_gate = replace(problem, options=problem.options | {"cell": LSTMCellOptions(dropout_per_gate=True)})
    assert_same_bits(solve(by_gate), solve(problem))


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_so_small_that_it_is_not_seen(variant: str) -> None:
    # A gradient of zeros would agree with any that are left out; what does not count is zero by what its name says.
    case = variant_of(variant, next(case for case in SHAPES if case.name == "projection"))
    zeros = {name for name, array in truth_of(case).items() if not array.any()}
    assert zeros == {
        "dropout_of_all": {"dx", "dh0", "dweight_ih_l0", "dweight_hh_l0"},
        "zoneout_of_all": {"dweight_hr_l0"},
    }.get(variant, set())


# To the last bit


@in_turns(variant=UNLIKE, case=SHARED)
def test_any_number_of_threads(isa: str, dtype: str, variant: str, case: Case) -> None:
    problem = problem_of(variant_of(variant, case)).astype(dtype)
    assert_same_bits(solve(problem, threads=2), solve(problem, threads=1))
    assert_same_bits(infer(problem, threads=2), infer(problem, threads=1))


SPECS = {
    "one_layer": WeightSpec(9, 37),
    "wide": WeightSpec(61, 67),
    "everything": WeightSpec(9, 21, 2, False, True, 5),
}


@in_turns(variant=UNLIKE, net=SPECS, marks=["plain", "marked"])
def test_any_batch_around_a_row(isa: str, dtype: str, variant: str, net: str, marks: str) -> None:
    given = MARKS | {"masked_output": "repeat"} if marks == "marked" else {}
    problem = make_problem(variant_of(variant, Case("", SPECS[net], 5, 61, **given))).astype(dtype)
    whole, whole_inferred = solve(problem), infer(problem)
    names = ("y", "h_n", "c_n", "cells", "gates", "dx", "dh0", "dc0")
    for batch in (1, 2, 3, 7, 49):
        rows = np.arange(batch)  # masks of a row are drawn for its place in the batch
        if not cell_of(variant).draws:
            rows = np.random.default_rng(1).permutation(61)[:batch]
        part = problem.rows(rows)
        found = solve(part)
        assert_same_bits({name: found[name] for name in names}, {name: whole[name][:, rows] for name in names})
        assert_same_bits(infer(part), {name: array[:, rows] for name, array in whole_inferred.items()})


@in_turns(variant=EXACT, case=[*SHAPES, *SHARED])
def test_training_gives_what_inference_gives(isa: str, dtype: str, variant: str, case: Case) -> None:
    problem = problem_of(replace(variant_of(variant, case), dropout=0.0)).astype(dtype)
    assert_same_bits(infer(problem), outputs(solve(problem)))


@in_turns(variant=UNLIKE, case=LONG)
def test_checkpoints_change_no_bit(isa: str, dtype: str, variant: str, case: Case) -> None:
    problem = problem_of(variant_of(variant, case)).astype(dtype)
    expected = solve(problem)
    for every in (1, 40, "auto"):
        assert_same_bits(solve(problem.with_options(checkpoint_every=every)), expected)


@in_turns(variant=UNLIKE, case=SHAPES + SHARED)
def test_checkpoints_change_no_bit_of_short_sequences(isa: str, dtype: str, variant: str, case: Case) -> None:
    problem = problem_of(variant_of(variant, case)).astype(dtype)
    assert_same_bits(solve(problem.with_options(checkpoint_every=1), threads=2), solve(problem, threads=1))


@in_turns(variant=UNLIKE, case=LONG)
def test_without_y_all_else_is_the_same(isa: str, dtype: str, variant: str, case: Case) -> None:
    p = replace(problem_of(variant_of(variant, case)).astype(dtype), dy=None)
    expected = solve(p)
    options = {"return_sequence": False, "return_gates": True, "checkpoint_every": 30} | p.options
    y, (h_n, c_n), gates, tape = functional.lstm_forward(p.x, p.weights, p.state, **options)
    grads = functional.lstm_backward(tape, None, p.dstate, dcells=p.dcells, dgates=p.dgates)
    found = {"h_n": h_n, "c_n": c_n, "gates": gates, "dx": grads.x, "dh0": grads.state[0], "dc0": grads.state[1]}
    assert y is None
    found |= {"d" + name: array for name, array in grads.weights.items()}
    assert_same_bits(found, {name: expected[name] for name in found})


STREAMED = [WeightSpec(9, 37), WeightSpec(61, 67, 2), WeightSpec(9, 21, 2, False, False, 5)]


@in_turns(variant=UNLIKE, spec=STREAMED, batch=[1, 2, 7, 50])
def test_a_stream_is_the_whole_sequence(isa: str, dtype: str, variant: str, spec: WeightSpec, batch: int) -> None:
    case = variant_of(variant, Case("", spec, 19, batch))
    p = problem_of(case).astype(dtype)
    lstm = layer_of(case, p, dtype)
    expected, (h_n, c_n) = lstm(p.x, p.state, threads=1)
    for threads in (1, 2):
        stream = lstm.stream(batch, p.state, threads=threads)
        parts = [stream(p.x[:5]), stream(p.x[5])[None], stream(p.x[6])[None], stream(p.x[7:7]), stream(p.x[7:])]
        found = {"y": np.concatenate(parts), "h_n": stream.state[0], "c_n": stream.state[1]}
        assert_same_bits(found, {"y": expected, "h_n": h_n, "c_n": c_n})


def layer_of(case: Case, problem: Problem, dtype: str) -> LSTM:
    spec = case.spec
    sizes = (spec.input_size, spec.hidden_size, spec.num_layers, spec.bias, False, 0.0, spec.bidirectional)
    parts = {"peepholes": spec.peepholes, "layer_norm": spec.layer_norm, "cell": case.cell}
    lstm = LSTM(*sizes, spec.proj_size, **parts, dtype=dtype, seed=0)
    lstm.load_state_dict(problem.weights)
    return lstm


# Pieces of one sequence


@in_turns(variant=UNLIKE, spec=[WeightSpec(5, 11), WeightSpec(5, 11, 3, proj_size=4), WeightSpec(61, 67, 2)])
def test_pieces_are_the_whole(isa: str, dtype: str, variant: str, spec: WeightSpec) -> None:
    case = variant_of(variant, Case("", spec, 30, 7, mask="random", reset="random", dropout=0.3))
    p = problem_of(case).astype(dtype)
    expected, starts = solve(p), (0, 13, 20)
    pieces = [slice(*ends) for ends in zip(starts, [*starts[1:], case.steps], strict=True)]

    def forward(steps: slice, state: Any) -> Any:
        options = p.steps(steps).options | {"return_cells": True, "return_gates": True, "dropout_step": steps.start}
        return functional.lstm_forward(p.x[steps], p.weights, state, **options)

    state, parts, tapes = p.state, [], []
    for steps in pieces:
        y, state, cells, gates, tape = forward(steps, state)
        parts.append({"y": y, "cells": cells, "gates": gates})
        tapes.append(tape)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found |= {"h_n": state[0], "c_n": state[1]}
    dstate, sums = p.dstate, {}
    for steps, tape in reversed(list(zip(pieces, tapes, strict=True))):
        given = {"dcells": p.dcells[steps], "dgates": p.dgates[steps]}
        grads = functional.lstm_backward(tape, p.dy[steps], dstate, **given)
        dstate = grads.state
        for name, array in ({"dx": grads.x} | {"d" + n: g for n, g in grads.weights.items()}).items():
            sums.setdefault(name, []).insert(0, array)
    found |= {"dx": np.concatenate(sums.pop("dx")), "dh0": dstate[0], "dc0": dstate[1]}
    assert_same_bits(found, {name: expected[name] for name in found})
    found |= {name: sum(arrays) for name, arrays in sums.items()}
    assert_close(found, truth_of(case), dtype, own_errors(case, dtype))


@pytest.mark.parametrize("variant", [variant for variant in UNLIKE if cell_of(variant).draws])
@pytest.mark.parametrize("changed", [{"dropout_seed": 1}, {"dropout_call": 7}], ids=str)
def test_draws_differ_between_seeds_and_calls(isa: str, variant: str, changed: dict[str, int]) -> None:
    if variant in ("zoneout_of_all", "dropout_of_all"):
        return
    case = variant_of(variant, Case("", WeightSpec(5, 11), 9, 6))
    problem = problem_of(case)
    other = problem.with_options(**changed)
    assert (solve(problem)["y"] != solve(other)["y"]).any()
    assert_close(solve(other), solve(other, reference), "float64", own_errors(case, "float64"))


# What is asked for wrongly


@pytest.mark.parametrize("module", [functional, reference], ids=["native", "reference"])
@pytest.mark.parametrize("variant", [variant for variant in ALONE if cell_of(variant).draws])
def test_what_draws_needs_a_seed_in_training(module: ModuleType, variant: str) -> None:
    p = problem_of(variant_of(variant, SHAPES[0]))
    options = p.options | {"dropout_seed": None}
    with pytest.raises(ValueError, match="dropout_seed is None, expected an integer from 0"):
        module.lstm_forward(p.x, p.weights, **options)
    module.lstm_forward(p.x, p.weights, training=False, **options)


@pytest.mark.parametrize("module", [functional, reference], ids=["native", "reference"])
def test_gradients_of_gates_have_the_gates_shape_and_dtype(module: ModuleType) -> None:
    p = problem_of(variant_of("peepholes", SHAPES[0]))
    *_, tape = module.lstm_forward(p.x, p.weights)
    with pytest.raises(ValueError, match=r"dgates has shape \(4, 7, 1\).* expected \(4, 7, 4\)"):
        module.lstm_backward(tape, p.dy, dgates=p.dy)
    with pytest.raises(TypeError, match="dgates has dtype float32"):
        module.lstm_backward(tape, p.dy, dgates=p.dgates.astype(np.float32))


def test_options_of_packed_weights_are_theirs() -> None:
    p = problem_of(variant_of("cell_clip", SHAPES[0]))
    packed = functional.PackedWeights.of(p.weights, cell=p.options["cell"])
    y = functional.lstm_forward(p.x, packed, p.state)[0]
    assert_same_bits({"y": y}, {"y": solve(p)["y"]})
    with pytest.raises(ValueError, match=r"cell is LSTMCellOptions.*but the weights were packed for .*cell_clip=0\.4"):
        functional.lstm_forward(p.x, packed, cell=LSTMCellOptions())
    with pytest.raises(TypeError, match="a dict: expected LSTMCellOptions"):
        functional.lstm_forward(p.x, p.weights, cell={"cell_clip": 0.4})


def test_normalised_input_needs_a_product() -> None:
    for build in (WeightSpec, LSTM):
        with pytest.raises(ValueError, match="layer_norm is True, but input_size is 0"):
            build(0, 5, layer_norm=True)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"activations": "tanh"}, TypeError, "activations is 'tanh', expected three"),
        ({"activations": ("tanh", "tanh")}, TypeError, "activations is .*, expected three"),
        ({"activations": ("tanh", "swish", "tanh")}, ValueError, r"activations\[1\] is 'swish', expected one of"),
        ({"activations": ("affine", "tanh", "tanh")}, ValueError, r"activations\[0\] has no alpha"),
        ({"activations": (("elu", -1.0), "tanh", "tanh")}, ValueError, r"alpha of activations\[0\] is -1.0"),
        ({"activations": (("elu", np.nan), "tanh", "tanh")}, ValueError, r"alpha of activations\[0\] is nan"),
        ({"activations": (("elu", 1, 2, 3), "tanh", "tanh")}, TypeError, r"activations\[0\] is .*a tuple"),
        ({"activations": (("elu", "1"), "tanh", "tanh")}, TypeError, r"alpha of activations\[0\] is '1'"),
        ({"gate_clip": 0}, ValueError, "gate_clip is 0.0, expected a positive number or None"),
        ({"cell_clip": -1}, ValueError, "cell_clip is -1.0, expected a positive number or None"),
        ({"cell_clip": np.nan}, ValueError, "cell_clip is nan"),
        ({"cell_clip": "1"}, TypeError, "cell_clip is '1', expected a positive number or None"),
        ({"zoneout_h": 1.5}, ValueError, "zoneout_h is 1.5, expected a number from 0 to 1"),
        ({"zoneout_c": np.nan}, ValueError, "zoneout_c is nan"),
        ({"weight_drop": -0.1}, ValueError, "weight_drop is -0.1"),
        ({"input_dropout": True}, TypeError, "input_dropout is True"),
        ({"recurrent_dropout": None}, TypeError, "recurrent_dropout is None"),
        ({"dropout_per_gate": 1}, TypeError, "dropout_per_gate is 1, expected True or False"),
        ({"coupled_input_forget": "no"}, TypeError, "coupled_input_forget is 'no', expected True or False"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LSTMCellOptions(**options)
